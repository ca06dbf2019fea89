"""What a client says to the server beside the socket: where to walk, tickets, uploads of pictures and worlds, downloads."""

from __future__ import annotations

import asyncio
import io
import json
import re
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from PIL import Image

from worldmodel.client.errors import ConnectionLost, Refused, kind_of_status, unreachable

Picture = str | Path | bytes | Image.Image
"""A file, its content, or the picture itself; as text also the name of a gallery world."""
WorldFile = str | Path | bytes
"""A saved world as a file, or its content."""


class HttpRoutes:
    """The HTTP routes of one server. All methods raise `ClientError`."""

    def __init__(self, url: str, access_token: str | None, timeout_s: float) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https", "ws", "wss") or not parts.netloc:
            raise ValueError(f"Give the server's address, for example http://127.0.0.1:7860, got {url!r}.")
        self.url = urlunsplit(("https" if parts.scheme in ("https", "wss") else "http", parts.netloc, parts.path.rstrip("/"), "", ""))
        self._access_token, self._timeout_s = access_token, timeout_s

    async def choose_one(self) -> None:
        """Of several servers that share the address, go on with the one that `url` sends to."""
        self.url = await asyncio.to_thread(_one_of_several, self.url, self._timeout_s)

    async def ticket(self) -> str | None:
        """What lets in the one who has the access token; None without one."""
        return None if self._access_token is None else (await self._post("api/v1/sessions", b""))["ticket"]

    async def beginning(self, image: Picture | None) -> dict[str, str]:
        """Fields that say where a world begins: a picture is uploaded, any other string is a gallery world's name."""
        if image is None:
            return {}
        if isinstance(image, str) and not Path(image).is_file():
            return {"gallery": image}
        if isinstance(image, Image.Image):
            out = io.BytesIO()
            image.convert("RGB").save(out, "PNG")
            body = out.getvalue()
        else:
            body = image if isinstance(image, bytes) else Path(image).read_bytes()
        return {"image": (await self._post("api/v1/images", body))["id"]}

    async def saved_world(self, world: WorldFile) -> dict[str, str]:
        """The same of a saved world, which is uploaded."""
        body = world if isinstance(world, bytes) else await asyncio.to_thread(Path(world).read_bytes)
        return {"world": (await self._post("api/v1/worlds", body))["id"]}

    async def download(self, address: str, path: str | Path) -> Path:
        """Write the file that is at this address of the server, whole or not at all."""
        body, path = await self._request(address), Path(path)
        part = path.with_name(path.name + ".part")
        try:
            await asyncio.to_thread(part.write_bytes, body)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    async def _post(self, address: str, body: bytes) -> dict[str, Any]:
        try:
            return json.loads(await self._request(address, body))
        except ValueError as error:
            raise ConnectionLost(f"{self.url} is no world server ({error}).") from None

    async def _request(self, address: str, body: bytes | None = None) -> bytes:
        """POST with a body, else GET."""
        headers = {"Content-Type": "application/octet-stream"}
        if self._access_token is not None:
            headers["Authorization"] = f"Bearer {self._access_token}"
        request = urllib.request.Request(f"{self.url}/{address}", data=body, headers=headers)

        def send() -> bytes:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:  # noqa: S310 (http or https, checked above)
                return answer.read()

        try:
            return await asyncio.to_thread(send)
        except urllib.error.HTTPError as error:
            with error:
                says = _error_text(error.read()) or f"{self.url} answered {error.code}."
            raise kind_of_status(error.code, Refused)(says) from None
        except OSError as error:
            raise unreachable(self.url, error) from None


class _Stay(urllib.request.HTTPRedirectHandler):
    """Tells where one is sent instead of going there."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _one_of_several(url: str, timeout_s: float) -> str:
    """Where to walk: `url`, or the one that its ``/`` sends to, ``r/0/``, where several servers share the address (`server.entrance`)."""
    try:
        urllib.request.build_opener(_Stay).open(urllib.request.Request(f"{url}/", method="HEAD"), timeout=timeout_s).close()
    except urllib.error.HTTPError as error:
        with error:
            place = re.fullmatch(r"(r/\d+)/", error.headers.get("Location", ""))
        if place:
            return f"{url}/{place[1]}"
    except (OSError, HTTPException) as error:
        raise unreachable(url, error) from None
    return url


def _error_text(body: bytes) -> str | None:
    try:
        return json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return None
