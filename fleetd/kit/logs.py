"""Logs a person can grep and journald can index: one event name, then fields; secrets are blanked before they are written."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

_SECRET_KEY = re.compile(r"pass(word|wd|phrase)?$|secret|token$|authorization|private", re.IGNORECASE)
BLANK = "***"


def blank_secrets(_: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: no value under a secret-sounding key reaches a log."""
    for key in fields:
        if _SECRET_KEY.search(key):
            fields[key] = BLANK
    return fields


def set_up(style: Literal["json", "text"] = "text", level: str = "info") -> None:
    """Write to stderr; `json` for machines, `text` for people."""
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            blank_secrets,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def get(room: str) -> Any:
    """A bound logger that names its room."""
    return structlog.get_logger(room=room)
