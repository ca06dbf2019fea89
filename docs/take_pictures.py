"""Take the pictures of the page in this folder: `python docs/take_pictures.py [address]`, while a server runs there.

Walks a little, branches, and takes page.png, page-timeline.png and page-phone.png with headless Chromium.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]
WALK = (("KeyW", 3), ("ArrowRight", 5), ("KeyW", 3), ("ArrowLeft", 7))
AT = "worldView.timeline.at"


def visit(browser: Browser, address: str, **device) -> Page:
    page = browser.new_context(**device).new_page()
    page.goto(address)
    page.wait_for_function("window.worldView?.state?.frame > 0 && !worldView.state.world.loading", timeout=300_000)
    page.focus(".wm-canvas")
    for key, chunks in WALK:
        hold(page, key, chunks)
    page.wait_for_timeout(2500)  # the memory is told once a second
    return page


def hold(page: Page, key: str, chunks: int) -> None:
    until = page.evaluate(AT) + chunks
    page.keyboard.down(key)
    page.wait_for_function(f"{AT} >= {until}", timeout=300_000)
    page.keyboard.up(key)


def take(page: Page, name: str, width: int = 1100) -> None:
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    picture.quantize(palette=picture.quantize(256), dither=Image.Dither.FLOYDSTEINBERG).save(HERE / name, optimize=True)
    print(HERE / name, f"{(HERE / name).stat().st_size / 1024:.0f} KiB")


def leave(page: Page) -> None:
    page.evaluate("worldView.destroy()")
    page.context.close()


def main(address: str) -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = visit(browser, address, viewport={"width": 1280, "height": 1010})
        take(page, "page.png")
        page.evaluate("worldView.fork(8)")
        page.wait_for_function("worldView.state.world.branches.length === 2 && !document.querySelector('.wm-curtain-on')", timeout=300_000)
        hold(page, "KeyD", 4)
        page.wait_for_timeout(2500)
        page.evaluate("worldView.settings.set('details', true)")
        slider = page.locator(".wm-scrub").bounding_box()
        page.mouse.click(slider["x"] + 0.35 * slider["width"], slider["y"] + slider["height"] / 2)
        page.wait_for_timeout(1000)
        take(page, "page-timeline.png")
        leave(page)
        phone = visit(browser, address, viewport={"width": 390, "height": 844}, device_scale_factor=2, has_touch=True, is_mobile=True)
        phone.wait_for_timeout(4000)  # the hint fades
        take(phone, "page-phone.png", width=585)
        leave(phone)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:7860/")
