"""Logging: static events, allow-listed fields, one line each; nothing a provider or caller wrote gets in raw."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Literal

import structlog

# A field that is not here is dropped and named in `dropped`, so that nobody logs a body, a URL or a token in passing.
# fmt: off
_FIELDS = frozenset((
    "event", "level", "timestamp", "logger", "provider", "slug", "connection_id", "integration_id",
    "operation_id", "environment_id", "version", "fence", "outcome", "reason", "error_code", "error_type",
    "where", "host", "port", "status", "attempts", "seconds", "count", "done", "total", "path", "method",
    "request_id", "key_id", "kek_ref", "caller_id", "name", "file", "pid", "workers", "variable", "failpoint",
    "exception", "dropped",
))
# fmt: on
_PRINTABLE = {character: f"\\x{character:02x}" for character in (*range(32), *range(127, 160))}


def configure(style: Literal["console", "json"]) -> None:
    """Set up structlog and silence the libraries that print URLs with tokens in them (httpx at INFO does)."""
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            allow_listed,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(WithoutValues("%(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in ("httpx", "httpcore", "hpack", "asyncio", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Its pool warns with a traceback at each attempt to reconnect; what fails meanwhile says so by itself.
    logging.getLogger("asyncpg").setLevel(logging.ERROR)


class WithoutValues(logging.Formatter):
    """Lines of other people's code: an exception is named with its place; its text may hold values of ours."""

    def formatException(self, ei: Any) -> str:  # noqa: N802  the library's name
        exc = ei[1]
        return f"{error_type(exc)} at {where(exc)}" if exc is not None else ""

    def formatStack(self, stack_info: str) -> str:  # noqa: N802  likewise
        return ""


def allow_listed(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Keep known fields, make their text printable on one line, and name what was dropped."""
    dropped = sorted(name for name in event if name not in _FIELDS)
    kept = {name: _printable(value) for name, value in event.items() if name in _FIELDS}
    if dropped:
        kept["dropped"] = dropped
    return kept


def _printable(value: Any) -> Any:
    if isinstance(value, (int, float, bool)) or value is None:
        return value
    return str(value).translate(_PRINTABLE)[:300]


def where(exc: BaseException) -> str:
    """Say where an exception was raised, innermost frames first, without a value from any of them."""
    frames = traceback.extract_tb(exc.__traceback__)[-4:]
    return " < ".join(f"{frame.name} {Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))


def error_type(exc: BaseException) -> str:
    """Name an exception without its text: messages of drivers and decoders may hold values."""
    return type(exc).__name__


log: structlog.stdlib.BoundLogger = structlog.get_logger()
