"""``worldmodel serve --replicas N``: several servers of one model behind one address, kept alive by Ray Serve (extra ``[ray]``).

A world lives in the process that made it, so everything of one visit has to come to the same one: socket, uploads, thumbnails, downloads. A
browser can put no header on most of these, so each replica has an address of its own, ``/r/0/``, ``/r/1/``, ...; all of a visit's
addresses are relative to it. ``/`` sends a newcomer to the replica with most room (`entrance`).
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

# Ray takes these when it is imported. Its ports let whoever reaches them run code, so they are for this machine only (the name is Ray's; it
# holds on Linux too), and those that Serve opens everywhere all the same want a token, which only this process and its children know.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # a line is not left out because another replica said the same
os.environ.setdefault("RAY_COLOR_PREFIX", "0")

import ray  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from ray import serve as ray_serve  # noqa: E402
from ray.exceptions import RayError  # noqa: E402

from worldmodel.model_settings import load_model  # noqa: E402
from worldmodel.server import logs  # noqa: E402
from worldmodel.server.config import ServeConfig  # noqa: E402
from worldmodel.server.entrance import Vacancy, entrance  # noqa: E402
from worldmodel.server.run import address, listen  # noqa: E402
from worldmodel.server.serve import build  # noqa: E402

log = logging.getLogger(__name__)
_LOGGING = {"log_level": "WARNING", "enable_access_log": False}
DRAIN_S = 60.0
"""How long the replicas may take to save their worlds."""
OBJECT_STORE_BYTES = 100 * 2**20
"""What Ray keeps for large arguments, of which there are none; left alone it takes a third of the memory."""


def replica(config: ServeConfig) -> FastAPI:
    """The application of one, made in its own process."""
    logs.set_up(config.log.format, config.log.level)
    return build(load_model(config.model, config.runtime, progress=False), config)


def front(replicas: int) -> FastAPI:
    """`entrance`, made in a process of its own."""
    handles = [ray_serve.get_app_handle(f"world-{i}") for i in range(replicas)]

    async def ask(i: int) -> Vacancy:
        return await handles[i].vacancy.remote()

    return entrance(replicas, ask)


def shares(config: ServeConfig, replicas: int) -> list[ServeConfig]:
    """What each replica runs with: its part of the cores, or a GPU of its own, and a folder of its own for saved worlds.

    Raises `ValueError` when there are too few GPUs.
    """
    import torch

    model, server = config.model, config.server
    device = model.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda"):
        device, count = "cuda", torch.cuda.device_count()  # Ray shows each replica one
        if count < replicas:
            raise ValueError(f"--replicas {replicas} needs as many GPUs, and there are {count}; give fewer, or [model] device = \"cpu\".")
    model = replace(model, device=device, threads=model.threads or max(1, torch.get_num_threads() // replicas))
    configs = []
    for i in range(replicas):
        if (autosave := server.autosave) is not None:
            autosave = replace(autosave, folder=(autosave.folder / f"replica-{i}").absolute())
        configs.append(replace(config, model=model, server=replace(server, autosave=autosave)))
    return configs


def serve_replicas(config: ServeConfig, replicas: int) -> None:
    """Until SIGTERM or Ctrl-C; returns when every world is saved."""
    logs.set_up(config.log.format, config.log.level)
    host, port = config.listen.host, config.listen.port
    with listen(host, port) as listener:  # a port that is taken is known at once
        shown = address(listener)
    configs = shares(config, replicas)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    ray.init(
        address="local", include_dashboard=False, configure_logging=False, object_store_memory=OBJECT_STORE_BYTES,
        _system_config={"worker_register_timeout_seconds": 300},  # a slow machine imports for long
    )  # fmt: skip
    signal.signal(signal.SIGTERM, stop)  # Ray has put its own in place
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    handles = []
    try:
        ray_serve.start(http_options={"host": host, "port": port}, logging_config=_LOGGING)
        for i, own in enumerate(configs):
            handles.append(_run(replica, own, f"world-{i}", f"/r/{i}", gpu=own.model.device == "cuda"))
        _run(front, replicas, "front", "/")
        print(f"Ready: {shown}  ({replicas} replicas; Ctrl-C stops)", flush=True)
        while True:
            signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _drain(handles)
        ray_serve.shutdown()
        ray.shutdown()
    log.info("stopped")


def _run(make: Callable[[Any], FastAPI], argument: Any, name: str, route: str, gpu: bool = False) -> Any:
    """Start the application that `make(argument)` gives, in one process of its own, and wait for it. Returns Ray's handle of it.

    How many it takes at once it decides itself. It asks for no cores, so that there may be more replicas than cores.
    """

    def build_here() -> FastAPI:
        return make(argument)

    @ray_serve.deployment(
        name=name, ray_actor_options={"num_cpus": 0, "num_gpus": int(gpu)}, max_ongoing_requests=1000, logging_config=_LOGGING,
        health_check_period_s=2, health_check_timeout_s=30, graceful_shutdown_wait_loop_s=0.5, graceful_shutdown_timeout_s=30,
    )  # fmt: skip
    @ray_serve.ingress(build_here)
    class Server:
        async def vacancy(self) -> Vacancy:
            return Vacancy.of(self.app.state.lobby)

        async def drain(self) -> None:
            await self.app.state.lobby.close()

    return ray_serve.run(Server.bind(), name=name, route_prefix=route)


def _drain(handles: list[Any]) -> None:
    """Let every replica save its worlds. Serve alone would wait for the sockets to close, and then kill."""
    answers = [handle.drain.remote() for handle in handles]
    for i, answer in enumerate(answers):
        try:
            answer.result(timeout_s=DRAIN_S)
        except (TimeoutError, RayError) as error:
            log.error("A replica did not say that its worlds are saved.", extra={"replica": i, "why": str(error)})
