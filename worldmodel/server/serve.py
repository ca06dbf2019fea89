"""``worldmodel serve``: the routes of `app` with the plain page of ``static/index.html``; ``app.py`` has the same with Gradio around it."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from worldmodel.runtime import RuntimeConfig
from worldmodel.server import logs
from worldmodel.server.app import UVICORN_OPTIONS, create_app
from worldmodel.server.config import ModelSettings, ServeConfig
from worldmodel.server.run import AnnouncingServer, listen, run

log = logging.getLogger(__name__)


def load(settings: ModelSettings, runtime: RuntimeConfig | None = None) -> Any:
    """The `WorldModel` that the config names."""
    import diffusers
    import torch
    import transformers

    from worldmodel.model import WorldModel

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()  # a log has no place for one
    if settings.threads:
        torch.set_num_threads(settings.threads)
    model = WorldModel.from_pretrained(settings.name, device=settings.device, runtime=runtime)
    if settings.memory is not None:
        model = model.with_memory(model.config.memory.named(settings.memory))
    return model if settings.steps is None else model.with_steps(settings.steps)


def build(model: Any, config: ServeConfig) -> FastAPI:
    """The application. The access token may also come from the environment, where it does not lie in a file."""
    settings = config.server
    if settings.access_token is None and os.environ.get("WORLDMODEL_ACCESS_TOKEN"):
        settings = replace(settings, access_token=os.environ["WORLDMODEL_ACCESS_TOKEN"])
    app = create_app(model, settings)

    @app.get("/")
    async def page() -> RedirectResponse:
        return RedirectResponse("wm-static/")

    return app


def serve(config: ServeConfig) -> None:
    """Until SIGTERM or Ctrl-C; returns when every world is saved."""
    logs.set_up(config.log.format, config.log.level)
    with listen(config.listen.host, config.listen.port) as listener:
        model = load(config.model, config.runtime)
        log.info("loaded", extra={"model": model.fingerprint, "device": str(model.device), "worlds": config.server.worlds})
        app = build(model, config)
        run(AnnouncingServer(uvicorn.Config(app, log_config=None, access_log=False, **UVICORN_OPTIONS)), [listener])
    log.info("stopped")
