"""``worldmodel serve --replicas N``: several servers of one model behind one address, kept alive by Ray Serve (extra ``[ray]``).

A world lives in the process that made it, so everything of one visit has to come to the same one: socket, uploads, thumbnails, downloads. A
browser can put no header on most of these, so each replica has an address of its own, ``/r/0/``, ``/r/1/``, ...; all of a visit's
addresses are relative to it. ``/`` sends a newcomer to a replica that has a place.
"""

from __future__ import annotations

import json
import logging
import random
import signal
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import replace

import ray
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse
from ray import serve as ray_serve

from worldmodel.server import logs
from worldmodel.server.config import ServeConfig
from worldmodel.server.serve import build, load

log = logging.getLogger(__name__)


def replica(config: ServeConfig) -> FastAPI:
    """The application of one, made in its own process."""
    logs.set_up(config.log.format, config.log.level)
    return build(load(config.model, config.runtime), config)


def lobby(replicas: int) -> FastAPI:
    """Where newcomers ask. Replicas are looked at in random order, so that those who come at once spread out."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    def enter(request: Request) -> RedirectResponse:
        order = random.sample(range(replicas), replicas)
        free = (i for i in order if not _occupied(f"http://127.0.0.1:{request.url.port}/r/{i}/healthz"))
        return RedirectResponse(f"r/{next(free, order[0])}/")

    return app


def _occupied(url: str) -> bool:
    """Whether a newcomer would have to wait there, or nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 (this machine)
            return json.load(answer)["occupied"]
    except (OSError, ValueError):
        return True


def serve_replicas(config: ServeConfig, replicas: int, cpus_each: float = 1.0) -> None:
    """Until SIGTERM or Ctrl-C."""
    logs.set_up(config.log.format, config.log.level)
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    ray.init(include_dashboard=False, log_to_driver=True, configure_logging=False)
    try:
        ray_serve.start(http_options={"host": config.listen.host, "port": config.listen.port})
        for i in range(replicas):
            own = config
            if config.server.autosave is not None:
                folder = config.server.autosave.folder / f"replica-{i}"
                own = replace(config, server=replace(config.server, autosave=replace(config.server.autosave, folder=folder.absolute())))
            options = {"num_cpus": cpus_each, "num_gpus": 1 if (config.model.device or "").startswith("cuda") else 0}
            ray_serve.run(_deployment(replica, (own,), f"world-{i}", options), name=f"world-{i}", route_prefix=f"/r/{i}")
        ray_serve.run(_deployment(lobby, (replicas,), "lobby", {"num_cpus": 0}), name="lobby", route_prefix="/")
        print(f"Ready: http://{config.listen.host}:{config.listen.port}  ({replicas} replicas; Ctrl-C stops)", flush=True)
        stop.wait()
    finally:
        ray_serve.shutdown()  # each replica drains: its worlds are saved
        ray.shutdown()


def _deployment(make: Callable[..., FastAPI], args: tuple, name: str, options: dict) -> ray_serve.Application:
    """The application that `make(*args)` gives, in one process of its own; what it cannot take at once it refuses itself."""

    def build_here() -> FastAPI:
        return make(*args)

    @ray_serve.deployment(name=name, ray_actor_options=options, max_ongoing_requests=1000, graceful_shutdown_timeout_s=30)
    @ray_serve.ingress(build_here)
    class Server:
        pass

    return Server.bind()
