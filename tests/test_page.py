"""The page in headless Chromium: the real application, with the packaged model when its weights are here, else the double."""

import base64
import importlib.util
import io
import json
import shutil
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from fake_model import FakeModel
from PIL import Image
from serving import running

import worldmodel
from worldmodel.server.settings import ServerSettings

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def load_application():
    spec = importlib.util.spec_from_file_location("page_application", Path(__file__).parent.parent / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    if (Path(worldmodel.__file__).parent / "weights" / "tiny" / "world_model.json").exists():
        return worldmodel.WorldModel.from_pretrained("tiny")
    return FakeModel(tmp_path_factory.mktemp("gallery"), size=(128, 128), step_s=0.1)


@pytest.fixture(scope="module")
def address(model):
    application = load_application().build_app(model, ServerSettings(busy_retry_s=0.5))
    with running(application) as host:
        yield f"http://{host}/"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright().start()
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield browser.new_context(viewport={"width": 1280, "height": 900})  # one context: later pages load from its cache
    browser.close()
    playwright.stop()


class Visit:
    """A page with what it complained about, whom it asked, and what it sent."""

    def __init__(self, browser, address: str) -> None:
        self.page = browser.new_page()
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        self.sent: list[dict] = []
        self.page.on("console", lambda m: m.type in ("error", "warning") and self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("request", lambda r: self.hosts.add(urlsplit(r.url).netloc))
        self.page.on("websocket", lambda w: w.on("framesent", lambda data: self.sent.append(json.loads(data))))
        self.page.goto(address)

    def state(self, path: str):
        return self.page.evaluate(f"window.worldView?.state.{path}")

    def wait(self, condition: str, timeout: float = 30.0) -> None:
        self.page.wait_for_function(condition, timeout=timeout * 1000, polling=30)

    def ready(self):
        self.wait("window.worldView?.state?.status === 'open' && window.worldView.state.frame > 0 && !window.worldView.state.world.loading")
        return self

    def leave(self) -> None:
        """Give up the place, so that the next visit finds it free."""
        self.page.evaluate("window.worldView?.destroy?.()")
        self.page.close()

    def frames(self, count: int) -> None:
        """Wait until so many more frames were painted."""
        self.wait(f"window.worldView.state.frame >= {self.state('frame') + count}", timeout=20 + count)

    def picture(self) -> np.ndarray:
        data = self.page.evaluate("document.querySelector('.wm-canvas').toDataURL()").partition(",")[2]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)

    def held(self) -> list[str]:
        return self.page.evaluate("window.worldView.controls.held")

    def walks(self) -> list[list[str]]:
        """Keys of every action message that held some."""
        return [m["keys"] for m in self.sent if m["type"] == "action" and m["keys"]]


@pytest.fixture(scope="module")
def open_visit(browser, address):
    visit = Visit(browser, address).ready()
    yield visit
    visit.leave()


@pytest.fixture
def visit(open_visit, address):
    """The one page of most tests (loading it is slow), back in the first world with nothing held."""
    visit = open_visit
    visit.page.evaluate("document.activeElement.blur(); scrollTo(0, 0); worldView.setSpeed(1)")
    visit.page.locator(".wm-tile[data-name]:not(.wm-own)").first.click()
    visit.page.evaluate("document.activeElement.blur()")
    visit.wait("document.querySelector('.wm-tile[data-name]:not(.wm-own)').dataset.name === worldView.state.world.gallery")
    visit.ready().frames(2)
    visit.complaints.clear()
    visit.sent.clear()
    yield visit
    visit.page.keyboard.press("Escape")
    assert visit.complaints == [], "the console is silent"
    assert visit.hosts <= {urlsplit(address).netloc, ""}, "no outside host is asked"


def test_a_taken_port_is_said_in_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"Cannot listen on 127.0.0.1 port {port} .* --port {port + 1}"):
            load_application().main(["--port", str(port)])


def difference(a, b):
    return abs(a - b).mean()


def test_a_held_key_moves_the_picture_and_blur_lets_go(visit):
    before = visit.picture()
    visit.page.focus(".wm-canvas")
    visit.page.keyboard.down("ArrowRight")
    visit.frames(24)
    after = visit.picture()
    assert difference(before, after) > 5
    assert visit.held() == ["ArrowRight"]
    assert visit.page.locator(".wm-key.wm-held").all_inner_texts()[0].startswith("→")
    visit.page.click("#prompt textarea")
    assert visit.held() == [] and visit.sent[-1]["type"] in ("action", "ack")
    assert [m for m in visit.sent if m["type"] == "action"][-1]["keys"] == []
    visit.frames(8)
    rest = visit.picture()
    visit.frames(8)
    assert difference(rest, visit.picture()) < difference(before, after) / 2, "it stands still again"


def test_every_way_of_leaving_lets_go(visit):
    for leave in (
        "window.dispatchEvent(new Event('blur'))",
        "window.dispatchEvent(new Event('pagehide'))",
        "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange')); delete document.hidden",
    ):
        visit.page.focus(".wm-canvas")
        visit.page.keyboard.down("KeyW")
        visit.page.keyboard.down("KeyD")
        assert sorted(visit.held()) == ["KeyD", "KeyW"]
        visit.page.evaluate(leave)
        assert visit.held() == []
        visit.page.keyboard.up("KeyW")
        visit.page.keyboard.up("KeyD")
    visit.page.keyboard.down("KeyW")
    visit.page.keyboard.press("Escape")
    assert visit.held() == [] and visit.page.evaluate("document.activeElement.className") != "wm-canvas"


def test_typing_in_the_prompt_does_not_walk(visit):
    box = visit.page.locator("#prompt textarea")
    box.fill("")
    box.press_sequentially("wasd rfijkl")
    assert visit.walks() == [] and box.input_value() == "wasd rfijkl"
    box.fill("the same place under a red sky")
    box.press("Enter")
    visit.wait("window.worldView.state.world.prompt === 'the same place under a red sky'")
    assert visit.page.evaluate("document.activeElement.className") == "wm-canvas", "and one can walk on"
    visit.frames(4)


def test_shortcuts_and_repeats_are_left_alone(visit):
    visit.page.focus(".wm-canvas")
    visit.page.keyboard.press("Control+KeyA")
    assert visit.walks() == []
    for _ in range(3):
        visit.page.keyboard.down("KeyW")  # the second and third are repeats
    visit.page.keyboard.up("KeyW")
    assert visit.walks() == [["KeyW"]]
    assert visit.page.evaluate("scrollY") == 0


def test_it_comes_back_after_a_dropped_socket_in_the_same_world(visit):
    session, frame = visit.state("ready.session"), visit.state("frame")
    visit.page.focus(".wm-canvas")
    visit.page.keyboard.down("ArrowLeft")
    visit.frames(8)
    dropped = time.monotonic()
    visit.page.evaluate("worldView.connection.socket.close()")  # as a bad network would
    visit.wait("window.worldView.state.ready.resumed && window.worldView.state.status === 'open'")
    visit.wait(f"window.worldView.state.frame > {frame + 8}")
    assert time.monotonic() - dropped < 10
    assert visit.state("ready.session") == session and visit.held() == []
    visit.frames(8)
    visit.page.reload()
    visit.ready()
    assert visit.state("ready.session") == session, "a reload goes on in the same world too"


def test_the_gallery_and_an_upload_change_the_world(visit, model, tmp_path):
    before = visit.picture()
    name = model.gallery[1].name
    visit.page.click(f'.wm-tile[data-name="{name}"]')
    visit.wait(f"window.worldView.state.world.gallery === {json.dumps(name)} && !window.worldView.state.world.loading")
    visit.frames(2)
    assert difference(before, visit.picture()) > 5
    assert visit.page.get_attribute(f'.wm-tile[data-name="{name}"]', "aria-pressed") == "true"
    visit.wait(f"document.querySelector('#prompt textarea').value === {json.dumps(model.gallery[1].prompt)}")

    Image.new("RGB", (300, 200), (230, 40, 40)).save(tmp_path / "red.png")
    visit.page.set_input_files(".wm-strip input", tmp_path / "red.png")
    visit.wait("window.worldView.state.world.image && !window.worldView.state.world.loading")
    visit.page.wait_for_timeout(300)
    red, green, blue = visit.picture().mean((0, 1))
    assert red > green + 60 and red > blue + 60
    assert visit.page.locator('.wm-own[aria-pressed="true"]').count() == 1

    (tmp_path / "words.png").write_bytes(b"these are words")
    visit.page.set_input_files(".wm-strip input", tmp_path / "words.png")
    visit.page.wait_for_selector(".wm-toast-on")
    assert "not a JPEG" in visit.page.inner_text(".wm-toast")
    visit.complaints = [c for c in visit.complaints if "422" not in c]  # the browser's own note of the refusal


def test_pause_speed_and_start_again(visit):
    visit.page.click("#pause")
    visit.wait("window.worldView.state.world.paused")
    assert visit.page.inner_text(".wm-note strong") == "Paused"
    visit.wait("document.querySelector('#pause').innerText === 'Continue'")
    visit.page.wait_for_timeout(300)
    frame = visit.state("frame")
    visit.page.wait_for_timeout(400)
    assert visit.state("frame") == frame
    visit.page.click(".wm-note button")
    visit.wait(f"window.worldView.state.frame > {frame + 4}")
    visit.page.fill("#speed input[type=number]", "1.5")
    visit.page.keyboard.press("Tab")
    visit.wait("window.worldView.state.world.speed === 1.5")
    visit.page.fill("#seed input", "7")
    visit.page.click("#restart")
    visit.wait("window.worldView.state.world.seed === 7")
    visit.frames(4)


def test_buttons_and_dragging_steer(visit):
    key = visit.page.locator('.wm-key[data-code="KeyW"]')
    key.hover()
    visit.page.mouse.down()
    assert visit.held() == ["KeyW"]
    visit.page.mouse.up()
    assert visit.held() == [] and visit.walks() == [["KeyW"]]
    before = visit.picture()
    box = visit.page.locator(".wm-canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    visit.page.mouse.move(x, y)
    visit.page.mouse.down()
    for step in range(1, 12):
        visit.page.mouse.move(x + 15 * step, y)
        visit.page.wait_for_timeout(20)
    visit.page.mouse.up()
    looks = np.array([m["look"] for m in visit.sent if m["type"] == "action"])
    assert looks[:, 0].sum() < -5 and looks[:, 1].sum() == 0, "dragging to the right turns to the left"
    visit.frames(12)
    assert difference(before, visit.picture()) > 3


def test_a_second_visitor_sees_why_and_gets_in_later(visit, browser, address):
    other = Visit(browser, address)  # a tab of its own: it knows nothing of the first one's token
    other.page.wait_for_selector(".wm-note-on")
    other.wait("document.querySelector('.wm-note').innerText.includes('Someone else is walking here')")
    visit.page.evaluate("worldView.connection.close()")
    other.ready()
    assert other.complaints == []
    other.leave()
    visit.page.evaluate("worldView.connection.connect()")
    visit.ready()


def test_it_is_smooth_and_answers_quickly(visit, model):
    visit.page.focus(".wm-canvas")
    visit.frames(8)
    for key in ("KeyW", "ArrowLeft", "KeyD") * 2:
        visit.page.keyboard.down(key)
        visit.frames(5)
        visit.page.keyboard.up(key)
    stats = visit.page.evaluate("window.worldView.stats()")
    step_s = stats["server"]["step_ms"] / 1000
    period = max(1 / model.fps, step_s / model.chunk_frames)
    assert stats["fps"] > 0.7 / period
    assert stats["latency"] / 1000 < 2 * (step_s + model.chunk_frames * period) + 0.2
