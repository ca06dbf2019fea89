"""Every way in which a server says no, or is not there, and which of them a message or a close code of the protocol means."""

from __future__ import annotations

from websockets.exceptions import ConnectionClosed

from worldmodel.server import protocol as p

RETRY_AFTER_S = 4.0
"""When to ask a full server again that does not say when."""


class ClientError(RuntimeError):
    """The server said no, or is not there. One clear sentence."""


class ServerFull(ClientError):
    """All places are taken; ask again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float = RETRY_AFTER_S) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Denied(ClientError):
    """The access token was refused, or the server asks for one."""


class WrongVersion(ClientError):
    """Client and server speak different versions of the protocol."""


class Refused(ClientError):
    """The server understood and did not do it: no such world, a picture that it cannot use, a message that makes no sense."""


class Ended(ClientError):
    """The server ended the visit: somebody else waited, the world went on elsewhere, the model failed."""


class ConnectionLost(ClientError):
    """The server cannot be reached, or has lost this world."""

    def __init__(self, message: str = "This connection was closed.") -> None:
        super().__init__(message)


def unreachable(url: str, error: Exception) -> ConnectionLost:
    return ConnectionLost(f"No world server answers at {url} ({error}).")


def kind_of_status(status: int, otherwise: type[ClientError]) -> type[ClientError]:
    """What an HTTP status other than 200 means."""
    return Denied if status in (401, 403) else otherwise


def from_message(error: p.Error) -> ClientError:
    """What an ``error`` message means."""
    if error.code == "busy":
        return ServerFull(error.message, error.retry_after_s or RETRY_AFTER_S)
    kinds = {"denied": Denied, "version": WrongVersion, "engine": Ended}
    return kinds.get(error.code, Refused)(error.message)


def from_close(closed: ConnectionClosed, said: p.Error | None) -> ClientError | None:
    """Why it is over, where the server `said` something before; None when it is worth coming back."""
    code = closed.rcvd.code if closed.rcvd is not None else 1006
    if said is not None and code >= 4400:
        return from_message(said)
    if code == p.CloseCode.BAD_MESSAGE:
        return Refused("The server refused a message.")
    if code == 1009:
        return Refused("A message was too large for the server.")
    if code in (p.CloseCode.IDLE, p.CloseCode.REPLACED):
        idle = code == p.CloseCode.IDLE
        return Ended("Somebody else was waiting for the place." if idle else "This world goes on in another connection.")
    if code == p.CloseCode.BUSY:
        return ServerFull("All places are taken.")
    if code >= 4000:
        return Ended(f"The server ended the connection (code {code}).")
    return None
