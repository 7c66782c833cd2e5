"""What the servers write to stderr: one line for a person, or one JSON object for a machine, also of what libraries say."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import structlog
from structlog.typing import Processor

FORMATS = ("text", "json")


def configure(log_format: str = "text", more: Sequence[Processor] = ()) -> None:
    """Once, at the start. `more` add what they know of the moment in which a line is written."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    show_no_variables()
    if log_format == "text":
        structlog.configure(processors=[*more, *structlog.get_config()["processors"]])
        return
    facts: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        *more,
        structlog.processors.add_log_level,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    render = structlog.processors.JSONRenderer(default=str)
    structlog.configure(processors=[structlog.dev.set_exc_info, *facts, render])
    handler = logging.StreamHandler(sys.stderr)
    ours = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=facts, processors=[ours, render]))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


def show_no_variables() -> None:
    """Tracebacks as Python writes them. structlog's own show every local variable, which may be a secret, and take seconds to be made."""
    structlog.dev.ConsoleRenderer.get_active().exception_formatter = structlog.dev.plain_traceback
