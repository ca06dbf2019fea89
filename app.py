"""The page: a world to walk through, a prompt, a seed, a speed. ``python app.py`` and open the address that it prints.

The view talks to the server by its own WebSocket (`worldmodel.server`); Gradio draws the controls around it, and their
events run in the browser, so no click waits for Gradio's queue.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr  # noqa: E402
import uvicorn  # noqa: E402
from fastapi import FastAPI  # noqa: E402

from worldmodel.configs import MEMORY_NAMES  # noqa: E402
from worldmodel.model_settings import DEPTH_HELP, ModelSettings, load_model  # noqa: E402
from worldmodel.runtime import RuntimeConfig, RuntimeSwitchError, add_arguments, from_arguments  # noqa: E402
from worldmodel.server.app import UVICORN_OPTIONS, create_app  # noqa: E402
from worldmodel.server.protocol import MAX_PROMPT, MAX_SPEED, MIN_SPEED  # noqa: E402
from worldmodel.server.run import AnnouncingServer, listen, run  # noqa: E402
from worldmodel.server.settings import ServerSettings  # noqa: E402

MOUNT = """
const root = element.querySelector('#world-view');
const appears = async (selector) => {
  for (;;) {
    const found = document.querySelector(selector);
    if (found) return found;
    await new Promise(requestAnimationFrame);
  }
};
import(new URL('wm-static/client.js', document.baseURI)).then(async ({ mountWorld }) => {
  let shown = null;
  window.worldView = mountWorld(root, {
    gallery: await appears('#world-gallery'),
    onWorld(state) {
      const about = JSON.stringify([state.gallery, state.image, state.prompt, state.seed, state.speed]);
      if (about === shown) return;
      shown = about;
      props.value = state;
      trigger('change');
    },
  });
});
"""
SHOW_STATE = """(state) => state
    ? [state.prompt, state.seed, state.speed]
    : ['', 0, 1]"""
SET_PROMPT = "(prompt) => { window.worldView?.setPrompt(prompt); window.worldView?.focus(); }"
RESTART = "(prompt, seed) => { window.worldView?.reset({ prompt, seed: Math.max(0, Math.round(seed ?? 0)) }); window.worldView?.focus(); }"
SET_SPEED = "(speed) => { window.worldView?.setSpeed(speed); }"

KEYS_HELP = """
| | | | |
|---|---|---|---|
| **W** **S** | forward, back | **↑ ↓** or **I** **K** | look up, down |
| **A** **D** | left, right | **← →** or **J** **L** | turn left, right |
| **R** **F** | rise, sink | **U** **O** | roll left, right |
| **Space** | pause, continue | **Backspace** | two seconds back |

Click the picture first; keys act only while it has its frame. Keys may be held together. Drag to look around, or click once
more to let the mouse look; **Esc** gives it back. A gamepad works too, and on a touch screen two sticks. A new prompt changes the world
from the next moment on; **Start again** goes back to the first picture with the prompt and seed shown here. Drag along the film strip to
go back, or to branch off there and keep both ways.
"""
CSS = (Path(__file__).parent / "worldmodel" / "server" / "static" / "page.css").read_text(encoding="utf-8")
HEAD = """
<script>
document.documentElement.classList.add('dark');
addEventListener('DOMContentLoaded', () => document.body.classList.add('dark'));
</script>
<meta name="color-scheme" content="dark">
"""


def build_page() -> gr.Blocks:
    """The Gradio page; it expects the routes of `create_app` beside it."""
    with gr.Blocks(title="World model", analytics_enabled=False, fill_width=True) as page:
        gr.HTML("<h1>World model</h1><p>One picture, one sentence, and you are in it.</p>", elem_id="masthead")
        view = gr.HTML(value=None, html_template='<div id="world-view"></div>', js_on_load=MOUNT, elem_id="world", apply_default_css=False)
        with gr.Column(elem_id="controls"):
            with gr.Row(equal_height=True, elem_id="say"):
                prompt = gr.Textbox(
                    label="Prompt",
                    placeholder="What is this place? Enter changes it.",
                    max_length=MAX_PROMPT,
                    lines=1,
                    max_lines=3,
                    scale=6,
                    elem_id="prompt",
                )
                seed = gr.Number(label="Seed", value=0, precision=0, minimum=0, maximum=2**32 - 1, min_width=90, scale=1, elem_id="seed")
                speed = gr.Slider(
                    MIN_SPEED, MAX_SPEED, value=1.0, step=0.1, label="Speed", min_width=170, scale=2, buttons=[], elem_id="speed"
                )
                restart = gr.Button("Start again", variant="primary", elem_id="restart", size="md", min_width=120)
        gr.HTML(value=None, html_template='<div id="world-gallery"></div>', elem_id="gallery", apply_default_css=False)
        with gr.Accordion("Keys", open=False, elem_id="keys"):
            gr.Markdown(KEYS_HELP)
        view.change(None, view, [prompt, seed, speed], js=SHOW_STATE, api_visibility="private")
        prompt.submit(None, prompt, None, js=SET_PROMPT)
        restart.click(None, [prompt, seed], None, js=RESTART)
        speed.input(None, speed, None, js=SET_SPEED)
    return page


def build_app(model: Any, settings: ServerSettings | None = None) -> FastAPI:
    """The server's routes with the page at ``/``."""
    theme = gr.themes.Base(
        primary_hue="teal", neutral_hue="slate", font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    app = create_app(model, settings)
    return gr.mount_gradio_app(
        app, build_page(), path="/", ssr_mode=False, theme=theme, css=CSS, head=HEAD, footer_links=[], run_history=False, show_error=True
    )


def load(settings: ModelSettings, runtime: RuntimeConfig) -> Any:
    """The model that the settings name, saying what goes on."""
    print(f"Loading the model {settings.name!r} ...", flush=True)
    begun = time.monotonic()
    model = load_model(settings, runtime)
    height, width = model.size
    print(f"Loaded in {time.monotonic() - begun:.1f} s: {width} x {height} pixels, {model.fps:g} frames a second.", flush=True)
    return model


def server_settings(args: argparse.Namespace) -> ServerSettings:
    """What the command line says, for the server."""
    autosave = None
    if args.save_worlds is not None:
        from worldmodel.autosave import AutosaveConfig

        autosave = AutosaveConfig(args.save_worlds)
    return ServerSettings(
        allowed_origins=tuple(args.allow_origin), rest_when_still=True, worlds=args.worlds, autosave=autosave,
        access_token=os.environ.get("WORLDMODEL_ACCESS_TOKEN") or None,
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Walk through generated worlds in the browser.",
        epilog="With WORLDMODEL_ACCESS_TOKEN in the environment only those enter who add #token=... to the address.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: %(default)s)")
    parser.add_argument("--model", default="tiny", help="packaged name, folder or hub id of the weights (default: %(default)s)")
    parser.add_argument("--memory", choices=MEMORY_NAMES, help="what becomes of what leaves the window (default: the model's own memory)")
    parser.add_argument("--depth", metavar="MODEL", help=DEPTH_HELP)
    parser.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="another site whose pages may open a stream")
    parser.add_argument("--worlds", type=int, default=1, metavar="N", help="visitors who walk at once (default: %(default)s)")
    parser.add_argument("--save-worlds", type=Path, metavar="FOLDER", help="keep worlds here, so that visitors go on after a restart")
    add_arguments(parser)
    args = parser.parse_args(argv)
    if args.worlds < 1:
        parser.error("--worlds is 1 or more.")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")

    try:
        with listen(args.host, args.port) as listener:
            try:
                model = load(ModelSettings(args.model, args.memory, depth=args.depth), from_arguments(args))
            except (OSError, ValueError, RuntimeSwitchError) as error:
                raise SystemExit(str(error)) from None
            app = build_app(model, server_settings(args))
            server = AnnouncingServer(uvicorn.Config(app, log_level="warning", **UVICORN_OPTIONS))
            run(server, [listener])
    except KeyboardInterrupt:
        pass
    print("Stopped.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
