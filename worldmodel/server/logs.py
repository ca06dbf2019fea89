"""Logs of a server: one line an event, as text for a person or as JSON for a machine. ``log.info("visit", extra={"session": ...})``"""

from __future__ import annotations

import json
import logging
import time

_USUAL = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """An object a line: time (UTC), level, logger, event, whatever `extra` has, and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line = {"time": when, "level": record.levelname, "logger": record.name, "event": record.getMessage()} | _extra(record)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the library's name)
        return " ".join([super().formatMessage(record), *(f"{name}={value}" for name, value in _extra(record).items())])


def _extra(record: logging.LogRecord) -> dict:
    return {name: value for name, value in vars(record).items() if name not in _USUAL}


def set_up(form: str, level: str) -> None:
    """Of this process; libraries speak from WARNING on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("worldmodel").setLevel(level)
