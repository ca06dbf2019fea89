"""The page in headless Chromium: walking, typing, leaving, coming back, start pictures, a second visitor."""

import json
import socket
import time

import numpy as np
import pytest
from browsing import Visit, load_application, needs_chromium
from PIL import Image

pytestmark = needs_chromium


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


def test_the_gallery_and_an_upload_change_the_world(visit, page_model, tmp_path):
    before = visit.picture()
    name = page_model.gallery[1].name
    visit.page.click(f'.wm-tile[data-name="{name}"]')
    visit.wait(f"window.worldView.state.world.gallery === {json.dumps(name)} && !window.worldView.state.world.loading")
    visit.frames(2)
    assert difference(before, visit.picture()) > 5
    assert visit.page.get_attribute(f'.wm-tile[data-name="{name}"]', "aria-pressed") == "true"
    visit.wait(f"document.querySelector('#prompt textarea').value === {json.dumps(page_model.gallery[1].prompt)}")

    Image.new("RGB", (300, 200), (230, 40, 40)).save(tmp_path / "red.png")
    visit.page.set_input_files(".wm-strip input", tmp_path / "red.png")
    visit.wait("window.worldView.state.world.image && !window.worldView.state.world.loading")
    visit.page.wait_for_timeout(300)
    red, green, blue = visit.picture().mean((0, 1))
    assert red > green + 60 and red > blue + 60
    assert visit.page.locator('.wm-own[aria-pressed="true"]').count() == 1
    if getattr(page_model, "known_pictures", None):
        assert "unlike the worlds" in visit.page.inner_text(".wm-notice span")

    (tmp_path / "words.png").write_bytes(b"these are words")
    visit.page.set_input_files(".wm-strip input", tmp_path / "words.png")
    visit.page.wait_for_selector(".wm-toast-on")
    assert "not a JPEG" in visit.page.inner_text(".wm-toast")
    visit.complaints = [c for c in visit.complaints if "422" not in c]  # the browser's own note of the refusal


def test_pause_speed_and_start_again(visit):
    visit.page.click("[aria-label=Pause]")
    visit.wait("window.worldView.state.world.paused")
    assert visit.page.inner_text(".wm-note strong") == "Paused"
    visit.page.wait_for_selector("[aria-label=Continue]")
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


def test_it_is_smooth_and_answers_quickly(visit, page_model):
    visit.page.focus(".wm-canvas")
    visit.frames(8)
    for key in ("KeyW", "ArrowLeft", "KeyD") * 2:
        visit.page.keyboard.down(key)
        visit.frames(5)
        visit.page.keyboard.up(key)
    stats = visit.page.evaluate("window.worldView.stats()")
    step_s = stats["server"]["step_ms"] / 1000
    period = max(1 / page_model.fps, step_s / page_model.chunk_frames)
    assert stats["fps"] > 0.7 / period
    assert np.median(stats["latencies"][-6:]) / 1000 < 2 * (step_s + page_model.chunk_frames * period) + 0.2
