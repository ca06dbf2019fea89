"""``worldmodel serve``: the routes of `app` with the plain page of ``static/index.html``; ``app.py`` has the same with Gradio around it."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from worldmodel.model_settings import load_model
from worldmodel.server import logs
from worldmodel.server.app import UVICORN_OPTIONS, create_app
from worldmodel.server.config import ServeConfig
from worldmodel.server.run import AnnouncingServer, listen, run

log = logging.getLogger(__name__)


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
        model = load_model(config.model, config.runtime, progress=False)
        log.info("loaded", extra={"model": model.fingerprint, "device": str(model.device), "worlds": config.server.worlds})
        app = build(model, config)
        run(AnnouncingServer(uvicorn.Config(app, log_config=None, access_log=False, **UVICORN_OPTIONS)), [listener])
    log.info("stopped")
