"""The page in headless Chromium: going back, branching, saving, opening, videos, a reload, a phone, the keyboard alone."""

import json
from contextlib import contextmanager

import av
import pytest
from browsing import Visit, needs_chromium

from worldmodel import World

pytestmark = needs_chromium

AT = "worldView.timeline.at"


def walk(visit, chunks, key="KeyW"):
    """Hold a key until so many chunks were seen, then pause. How many chunks there are then."""
    visit.page.evaluate("worldView.resume()")
    visit.page.focus(".wm-canvas")
    at = visit.page.evaluate(AT)
    visit.page.keyboard.down(key)
    visit.wait(f"{AT} >= {at + chunks}")
    visit.page.keyboard.up(key)
    visit.page.evaluate("worldView.pause()")
    visit.wait("worldView.state.world.paused")
    return visit.page.evaluate(AT)


def scrub_to(visit, at):
    visit.page.focus(".wm-scrub")
    visit.page.evaluate("(at) => { const s = document.querySelector('.wm-scrub'); s.value = at; s.dispatchEvent(new Event('input')); }", at)


def test_the_strip_goes_back_and_branches(visit):
    end = walk(visit, 4)
    assert visit.page.locator(".wm-film img").count() >= 4
    visit.wait("[...document.querySelectorAll('.wm-film img')].every((img) => img.complete && img.naturalWidth > 0)")
    scrub_to(visit, 2)
    assert visit.page.get_attribute(".wm-scrub", "aria-valuetext").endswith("ago")
    assert visit.page.locator(".wm-peek").is_visible()
    visit.page.click("text=Branch off here")
    visit.wait(f"{AT} === 2 && worldView.state.world.branches.length === 2")
    walk(visit, 1, "KeyD")
    assert visit.page.locator(".wm-chip").all_inner_texts() == ["First way", "Branch 1"]
    visit.page.click("text=First way")
    visit.wait(f"{AT} >= {end} && document.querySelector('.wm-chip[aria-pressed=true]').innerText === 'First way'")
    visit.page.click("[aria-label='Forget Branch 1']")
    visit.wait("worldView.state.world.branches.length === 1")
    scrub_to(visit, 1)
    visit.page.click("text=Go back here")
    visit.wait(f"{AT} === 1 && !document.querySelector('.wm-curtain-on')")
    visit.page.keyboard.press("Backspace")
    visit.wait(f"{AT} === 0")
    walk(visit, 1)


def test_map_and_memory_show_what_is_remembered(visit):
    walk(visit, 3)
    visit.wait(f"worldView.state.memory?.at >= {AT}")
    tiles = visit.state("memory.tiles")
    assert visit.page.locator(".wm-cell").count() == len(tiles) >= 4
    assert f"{len(tiles)} of them remembered" in visit.page.get_attribute(".wm-map", "aria-label")
    assert f"{visit.state('memory.tokens')} tokens" in visit.page.inner_text(".wm-legend")
    assert visit.page.evaluate("new Set(document.querySelector('.wm-map').getContext('2d').getImageData(0, 0, 200, 200).data).size") > 20


def test_a_world_is_saved_opened_here_and_in_python(visit, page_model, tmp_path):
    end = walk(visit, 2)
    with visit.page.expect_download() as download:
        visit.page.click("[aria-label='Save this world to a file']")
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert path.suffix == ".world"
    assert World.load(page_model, path).index >= end
    visit.page.evaluate("worldView.reset()")
    visit.wait(f"{AT} < {end}")
    visit.page.set_input_files("[aria-label='World file']", path)
    visit.wait(f"{AT} >= {end} && !worldView.state.world.loading")
    walk(visit, 1)
    (tmp_path / "words.world").write_text("these are words")
    visit.page.set_input_files("[aria-label='World file']", tmp_path / "words.world")
    visit.page.wait_for_selector(".wm-toast-on:not(.wm-toast-good)")
    visit.complaints = [c for c in visit.complaints if "422" not in c]  # the browser's own note of the refusal


def decoded(path):
    with av.open(str(path)) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def test_videos_of_the_way_and_of_what_was_seen(visit, page_model, tmp_path):
    visit.page.click(".wm-record")
    walk(visit, 2)
    with visit.page.expect_download() as recorded:
        visit.page.click("[aria-label='Stop recording']")
    with visit.page.expect_download() as made:
        visit.page.click("[aria-label='Download a video of the way so far']")
    way = tmp_path / made.value.suggested_filename
    made.value.save_as(way)
    frames = decoded(way)
    assert way.suffix == ".mp4" and len(frames) >= 2 * page_model.chunk_frames
    assert frames[0].std() > 5, "there is something to see"
    seen = tmp_path / recorded.value.suggested_filename
    recorded.value.save_as(seen)
    frames = decoded(seen)
    assert len(frames) >= 2 and min(frames[0].shape[:2]) >= 512 and frames[-1].std() > 5


def test_settings_outlive_the_page_and_the_world_goes_on(visit):
    end, session = walk(visit, 2), visit.state("ready.session")
    visit.page.click("[aria-label=Settings]")
    visit.page.check("text=Figures over the picture")
    visit.page.uncheck("text=Map and memory")
    visit.page.keyboard.press("Escape")
    visit.page.reload()
    visit.ready()
    visit.wait(f"{AT} >= {end}")
    assert visit.state("ready.session") == session
    visit.wait("document.querySelector('.wm-meter').innerText.includes('encode')")
    assert visit.page.locator(".wm-map").is_hidden()
    visit.page.evaluate("localStorage.clear()")
    visit.page.reload()
    visit.ready()
    assert visit.page.locator(".wm-map").is_visible()


def test_a_notice_of_the_server_is_shown_until_it_is_put_away(visit):
    visit.page.evaluate("""worldView.connection.socket.onmessage({data: JSON.stringify(
        {...worldView.state.world, notice: 'This picture is unlike what this model knows.'})})""")
    assert visit.page.inner_text(".wm-notice span") == "This picture is unlike what this model knows."
    visit.page.click("text=Got it")
    assert visit.page.locator(".wm-notice").is_hidden()


def test_a_gamepad_walks_and_looks(visit):
    visit.page.evaluate("""() => {
        const pad = {id: 'a pad', connected: true, axes: [0, -1, 1, 0], buttons: Array.from({length: 17}, () => ({pressed: false}))};
        navigator.getGamepads = () => [pad];
        const event = new Event('gamepadconnected');
        event.gamepad = pad;
        window.pad = pad;
        dispatchEvent(event);
    }""")
    visit.wait("worldView.controls.held.includes('KeyW')")
    visit.page.wait_for_timeout(300)
    visit.page.evaluate("window.pad.axes = [0, 0, 0, 0]")
    visit.wait("worldView.controls.held.length === 0")
    assert sum(m["look"][0] for m in visit.sent if m["type"] == "action") > 3
    visit.page.evaluate("window.pad.connected = false")


def test_the_keyboard_alone_reaches_everything(visit):
    """From the top of the page by Tab: the world, walking, and every button, each with a name."""
    visit.page.click("#masthead h1")
    names = []
    for _ in range(30):
        visit.page.keyboard.press("Tab")
        names.append(visit.page.evaluate("""(() => { const e = document.activeElement;
            return (e.getAttribute('aria-label') ?? e.labels?.[0]?.innerText ?? e.innerText ?? '').trim(); })()"""))
    assert all(names), names
    found = " | ".join(names)
    for wanted in ("World view", "Pause", "Timeline", "Save this", "Open a", "Settings", "Rise", "Roll left", "Prompt", "Your picture"):
        assert wanted in found, f"{wanted} is not reached: {found}"
    visit.page.focus(".wm-canvas")
    visit.page.keyboard.press("Space")
    visit.wait("worldView.state.world.paused")
    assert visit.page.inner_text(".wm-status").startswith("Paused"), "and it is read out"
    visit.page.keyboard.press("Space")
    visit.wait("!worldView.state.world.paused")
    visit.page.keyboard.down("KeyW")
    visit.wait(f"{AT} >= 2")
    visit.page.keyboard.up("KeyW")
    visit.page.focus(".wm-scrub")
    visit.page.keyboard.press("ArrowLeft")
    visit.page.keyboard.press("Enter")
    visit.wait("document.activeElement.className === 'wm-canvas' && !document.querySelector('.wm-curtain-on')")


@contextmanager
def another_visit(browser, visit, address, script="", **device):
    """A page on another device, while the one visit makes room."""
    visit.page.evaluate("worldView.connection.close()")
    context = browser.browser.new_context(**device)
    context.add_init_script(script)
    other = Visit(context, address)
    try:
        yield other.ready()
        assert other.complaints == []
    finally:
        other.leave()
        context.close()
        visit.page.evaluate("worldView.connection.connect()")
        visit.ready()


def test_a_phone_has_sticks_and_everything_fits(visit, browser, address):
    phone = dict(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, device_scale_factor=2)
    with another_visit(browser, visit, address, **phone) as other:
        assert other.page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing is cut off at the side"
        stick, picture = (other.page.locator(css).bounding_box() for css in ("[data-stick=walk]", ".wm-canvas"))
        assert picture["width"] > 340 and stick["y"] + stick["height"] < 844, "the sticks are seen with the picture"
        touch = other.page.context.new_cdp_session(other.page)
        x, y = stick["x"] + stick["width"] / 2, stick["y"] + stick["height"] / 2
        touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x + 40, "y": y - 40}]})
        assert sorted(other.held()) == ["KeyD", "KeyW"]
        other.wait(f"{AT} >= 1")
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        assert other.held() == []
        small = other.page.evaluate("""[...document.querySelectorAll('.wm-dock button, .wm-key')]
            .filter((b) => b.offsetParent && b.getBoundingClientRect().height < 40).length""")
        assert small == 0, "buttons are big enough for thumbs"


NO_WEBSOCKETS = """window.WebSocket = Object.assign(class { constructor() { setTimeout(() => this.onclose({code: 1006})); } },
    {CONNECTING: 0, OPEN: 1, CLOSING: 2, CLOSED: 3})"""


@pytest.mark.parametrize("script", ["", NO_WEBSOCKETS], ids=["websocket", "http"])
def test_a_page_without_gradio_plays_too(visit, browser, address, script):
    """Over plain HTTP too, as behind a proxy that refuses WebSockets."""
    with another_visit(browser, visit, address + "wm-static/index.html", script, reduced_motion="reduce") as other:
        assert other.page.evaluate("Boolean(worldView.connection.overHttp)") == bool(script)
        assert not other.page.evaluate("'gradio_config' in window")
        other.page.focus(".wm-canvas")
        other.page.keyboard.down("KeyW")
        other.frames(6)
        other.page.keyboard.up("KeyW")
        other.page.fill("#prompt", "a place under a red sky")
        other.page.keyboard.press("Enter")
        other.wait("worldView.state.world.prompt === 'a place under a red sky'")
        assert json.loads(other.page.evaluate("JSON.stringify(worldView.stats())"))["fps"] >= 0
