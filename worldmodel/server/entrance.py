"""The way in to several servers behind one address (`ray_app`): they are at ``/r/0/``, ``/r/1/``, ..., and ``/`` sends a newcomer to one.

GET, HEAD /   307 to the replica with most room; 503 when none answers
GET /healthz  {"ok": true, "occupied": false}: this process lives; occupied when every replica is
GET /readyz   200 {"ready": true} while some replica lets people in, else 503
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse, RedirectResponse

if TYPE_CHECKING:
    from worldmodel.server.lobby import Lobby

ANSWER_S = 1.0
"""A replica that takes longer to answer is passed over."""


@dataclass(frozen=True)
class Vacancy:
    """How full one server is: `here` are those who walk or wait in line."""

    here: int
    occupied: bool
    ready: bool

    @classmethod
    def of(cls, lobby: Lobby) -> Vacancy:
        return cls(lobby.admission.occupied + lobby.admission.waiting, lobby.occupied, not lobby.stopping)


def entrance(replicas: int, ask: Callable[[int], Awaitable[Vacancy]]) -> FastAPI:
    """The application at ``/``; `ask(i)` is answered by replica `i`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    async def vacancies() -> dict[int, Vacancy]:
        """Of those that let people in."""
        answers = await asyncio.gather(*(asyncio.wait_for(ask(i), ANSWER_S) for i in range(replicas)), return_exceptions=True)
        return {i: answer for i, answer in enumerate(answers) if isinstance(answer, Vacancy) and answer.ready}

    @app.api_route("/", methods=["GET", "HEAD"])
    async def enter() -> Response:
        found = await vacancies()
        if not found:
            return JSONResponse({"error": "No world can be entered now; try again in a moment."}, 503, {"Retry-After": "5"})
        chosen = min(found, key=lambda i: (found[i].occupied, found[i].here, random.random()))
        return RedirectResponse(f"r/{chosen}/", headers={"Cache-Control": "no-store"})

    @app.get("/healthz")
    async def health() -> dict[str, bool]:
        return {"ok": True, "occupied": all(vacancy.occupied for vacancy in (await vacancies()).values())}

    @app.get("/readyz")
    async def ready() -> Response:
        found = await vacancies()
        return JSONResponse({"ready": bool(found)}, status_code=200 if found else 503)

    return app
