"""The page in headless Chromium: a browser, the real application with the packaged model (else the double), and one visit.

Fixtures for `test_page*.py`; one server and one browser for all of them.
"""

import base64
import importlib.util
import io
import json
import shutil
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

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def load_application():
    spec = importlib.util.spec_from_file_location("page_application", Path(__file__).parent.parent / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def page_model(tmp_path_factory):
    if (Path(worldmodel.__file__).parent / "weights" / "tiny" / "world_model.json").exists():
        return worldmodel.WorldModel.from_pretrained("tiny")
    return FakeModel(tmp_path_factory.mktemp("gallery"), size=(128, 128), step_s=0.1)


@pytest.fixture(scope="session")
def address(page_model):
    application = load_application().build_app(page_model, ServerSettings(busy_retry_s=0.5))
    with running(application) as host:
        yield f"http://{host}/"


@pytest.fixture(scope="session")
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
        self.page.set_default_timeout(90_000)  # the machine may be busy
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

    def wait(self, condition: str, timeout: float = 90.0) -> None:
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
        self.wait(f"window.worldView.state.frame >= {self.state('frame') + count}", timeout=60 + 2 * count)

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
    visit.page.evaluate("worldView.setSpeed(1)")
    visit.page.locator(".wm-tile[data-name]:not(.wm-own)").first.click()
    visit.page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    visit.wait("document.querySelector('.wm-tile[data-name]:not(.wm-own)').dataset.name === worldView.state.world.gallery")
    visit.ready().frames(2)
    visit.complaints.clear()
    visit.sent.clear()
    yield visit
    visit.page.keyboard.press("Escape")
    assert visit.complaints == [], "the console is silent"
    assert visit.hosts <= {urlsplit(address).netloc, ""}, "no outside host is asked"
