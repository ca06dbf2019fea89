"""The HTTP and WebSocket routes around one model. Nothing here knows of any page.

WS   /api/v1/stream                     messages and frames of `protocol`
POST /api/v1/stream/http                the same over HTTP (`http_stream`); further messages to .../http/{channel}
POST /api/v1/images                     body: a JPEG, PNG or WebP file; answer: {"id": ...} for `reset`
POST /api/v1/worlds                     body: a world file; answer: {"id": ...} for `reset`
GET  /api/v1/files/{id}                 a saved world or video, for a while
GET  /api/v1/thumbnails/{key}/{number}  small pictures of a session's timeline
GET  /api/v1/gallery                    worlds to start in, each with a thumbnail
POST /api/v1/sessions                   {"ticket": ..., "expires_in_s": 60}; wants the access token, if there is one
GET  /healthz                           {"ok": true, "occupied": false}: the process lives
GET  /readyz                            200 {"ready": true}, or 503 while the server stops
GET  /metrics                           Prometheus text
GET  /wm-static/...                     client.js, style.css, and index.html: a page without any framework
"""

from __future__ import annotations

import asyncio
import hmac
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from starlette.datastructures import Headers

from worldmodel.images import ImageError
from worldmodel.server import protocol as p
from worldmodel.server.branches import NotPossible
from worldmodel.server.conversation import SEND_TIMEOUT_S, Socket, serve
from worldmodel.server.files import Files
from worldmodel.server.http_stream import MAX_BODY, HttpStream
from worldmodel.server.lobby import Lobby
from worldmodel.server.metrics import CONTENT_TYPE
from worldmodel.server.origin import read_world
from worldmodel.server.settings import ServerSettings
from worldmodel.server.tickets import Tickets
from worldmodel.server.uploads import Upload, Uploads

STATIC_DIR = Path(__file__).parent / "static"
THUMBNAIL_SIDE = 320
UPLOADS_AT_ONCE = 4
"""Worlds: each takes its size of memory and disk while it is looked at."""
UVICORN_OPTIONS = {
    "ws_per_message_deflate": False,  # JPEG does not compress further; it only costs time
    "ws_max_size": 65536,
    "ws_ping_interval": 10,
    "ws_ping_timeout": 20,
    "timeout_graceful_shutdown": 3,
}
"""How to run the application: ``uvicorn.run(create_app(model), **UVICORN_OPTIONS)``."""


def create_app(model: Any, settings: ServerSettings | None = None) -> FastAPI:
    """Application that lets visitors walk through worlds of `model`, `ServerSettings.worlds` at once."""
    settings = settings or ServerSettings()
    uploads = Uploads(settings.uploads_kept)
    files = Files(settings.file_s, settings.files_kept, settings.files_bytes)
    lobby = Lobby(model, settings, uploads.get, files)
    tickets = Tickets(settings.ticket_s)
    gallery = {entry.name: entry for entry in model.gallery}
    thumbnails: dict[str, bytes] = {}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await lobby.close()
        files.close()

    app = FastAPI(title="worldmodel", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.lobby = lobby

    def refused(status: int, reason: str, message: str) -> Response:
        lobby.metrics.refused.labels(reason).inc()
        return JSONResponse({"error": message}, status_code=status)

    def denied(request: Request, token: bool = True) -> Response | None:
        """The answer to a page of another site, or, where the `token` is asked for, to somebody without it."""
        if not _origin_allowed(request.headers, settings):
            return refused(403, "origin", "This is for this server's own page only.")
        if token and not _authorized(request.headers, settings):
            return refused(401, "token", "This server asks for its access token.")
        return None

    @app.websocket("/api/v1/stream")
    async def stream(websocket: WebSocket) -> None:
        if not _origin_allowed(websocket.headers, settings):
            lobby.metrics.refused.labels("origin").inc()
            await websocket.close()  # before accept: the handshake is answered with 403
            return
        wanted = websocket.scope.get("subprotocols", [])
        await websocket.accept(subprotocol=p.SUBPROTOCOL if p.SUBPROTOCOL in wanted else None)
        await serve(Socket(websocket), lobby, settings, tickets)

    streams: dict[str, HttpStream] = {}
    uploading = asyncio.Semaphore(UPLOADS_AT_ONCE)

    @app.post("/api/v1/stream/http")
    async def stream_http(request: Request) -> Response:
        answer = denied(request, token=False)  # hello has a ticket, as on the socket
        if answer is not None:
            return answer
        body = await _body(request, MAX_BODY)
        stream = HttpStream(request.client.host if request.client else "", SEND_TIMEOUT_S)
        if body is None or not stream.take(body):
            return refused(413, "bytes", "Say hello in at most 65536 bytes.")

        async def talk(stream: HttpStream) -> None:
            streams[stream.channel] = stream
            try:
                await serve(stream, lobby, settings, tickets)
            finally:
                del streams[stream.channel]
                stream.drop()

        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream.records(talk), media_type="application/octet-stream", headers=headers)

    @app.post("/api/v1/stream/http/{channel}")
    async def say_http(channel: str, request: Request) -> Response:
        answer = denied(request, token=False)
        if answer is not None:
            return answer
        stream = streams.get(channel)
        if stream is None:
            return refused(404, "name", "This stream has ended.")
        body = await _body(request, MAX_BODY)
        if body is None:
            return refused(413, "bytes", "Messages have at most 65536 bytes.")
        return Response(status_code=204) if stream.take(body) else refused(429, "rate", "Too many messages wait; send fewer.")

    @app.post("/api/v1/sessions")
    async def ticket(request: Request) -> Response:
        return denied(request) or JSONResponse({"ticket": tickets.issue(), "expires_in_s": settings.ticket_s})

    @app.post("/api/v1/images")
    async def upload(request: Request) -> Response:
        answer = denied(request)
        if answer is not None:
            return answer
        body = await _body(request, settings.upload_bytes)
        if body is None:
            return refused(413, "bytes", f"The file is too large: at most {settings.upload_bytes // 2**20} MB.")
        try:
            taken = await asyncio.to_thread(Upload.of, body, model)
        except ImageError as error:
            return refused(422, "image", str(error))
        return JSONResponse({"id": uploads.add(taken)})

    @app.post("/api/v1/worlds")
    async def upload_world(request: Request) -> Response:
        answer = denied(request)
        if answer is not None:
            return answer
        if uploading.locked():
            return refused(429, "rate", "Others are uploading worlds; try again in a moment.")
        async with uploading:
            return await store_world(request)

    async def store_world(request: Request) -> Response:
        path, size = files.new_path(), 0
        try:
            with path.open("wb") as out:
                async for part in request.stream():
                    size += len(part)
                    if size > settings.world_bytes:
                        return refused(413, "bytes", f"The file is too large: at most {settings.world_bytes // 2**20} MB.")
                    await asyncio.to_thread(out.write, part)
            await asyncio.to_thread(read_world, path, model)
            return JSONResponse({"id": files.add(path, "world.world", "application/octet-stream")})
        except NotPossible as error:
            return refused(422, "world", str(error))
        except OSError:
            return refused(507, "disk", "The disk is full or cannot be written.")
        finally:
            if not files.knows(path):
                path.unlink(missing_ok=True)

    @app.get("/api/v1/files/{key}")
    async def download(key: str) -> Response:
        file = files.get(key)
        if file is None:
            return refused(404, "name", "There is no such file, or not any more.")
        headers = {"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"}
        return FileResponse(file.path, media_type=file.media_type, filename=file.name, headers=headers)

    @app.get("/api/v1/thumbnails/{key}/{number}")
    async def moment(key: str, number: int) -> Response:
        thumbnails = lobby.thumbnails(key)
        picture = await thumbnails.wait_for(number) if thumbnails is not None else None
        if picture is None:
            return refused(404, "name", "There is no such picture, or not any more.")
        return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400, immutable"})

    @app.get("/api/v1/gallery")
    async def list_gallery() -> list[dict[str, str]]:
        return [
            {"name": e.name, "prompt": e.prompt, "family": e.family, "thumbnail": f"api/v1/gallery/{quote(e.name, safe='')}/thumbnail"}
            for e in gallery.values()
        ]

    @app.get("/api/v1/gallery/{name}/thumbnail")
    async def thumbnail(name: str) -> Response:
        if name not in gallery:
            return refused(404, "name", "There is no such world.")
        if name not in thumbnails:
            thumbnails[name] = await asyncio.to_thread(_thumbnail, gallery[name].image_path)
        return Response(thumbnails[name], media_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})

    @app.get("/healthz")
    async def health() -> dict[str, bool]:
        return {"ok": True, "occupied": lobby.occupied}

    @app.get("/readyz")
    async def ready() -> Response:
        return JSONResponse({"ready": not lobby.stopping}, status_code=503 if lobby.stopping else 200)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        if not _authorized(request.headers, settings):
            return refused(401, "token", "This server asks for its access token.")
        return Response(await lobby.measure(), media_type=CONTENT_TYPE)

    app.mount("/wm-static", _FreshFiles(directory=STATIC_DIR, html=True), name="wm-static")
    return app


async def _body(request: Request, limit: int) -> bytes | None:
    """What was posted; None when it has more than `limit` bytes."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            return None
    return bytes(body)


def _origin_allowed(headers: Headers, settings: ServerSettings) -> bool:
    """Browsers always say where a page came from; only this server's own pages may use it. Other programs say nothing."""
    origin = headers.get("origin")
    if origin is None or origin in settings.allowed_origins:
        return True
    return urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


def _authorized(headers: Headers, settings: ServerSettings) -> bool:
    """Whether the access token was shown, if there is one."""
    if settings.access_token is None:
        return True
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), settings.access_token.encode())


def _thumbnail(path: str | Path) -> bytes:
    with Image.open(path) as image:
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.convert("RGB").save(out, "JPEG", quality=88)
    return out.getvalue()


class _FreshFiles(StaticFiles):
    """Static files that a browser asks about every time, so that an update is seen at once."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response
