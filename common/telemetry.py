"""Logs: constant messages with fields, readable on a terminal, JSON elsewhere."""

import logging
import sys
from typing import TextIO

import structlog
from prometheus_client import disable_created_metrics


def configure_logging(process: str, *, level: str, as_json: bool, stream: TextIO) -> None:
    """Set up structlog for this process; every line carries its name.

    The standard library's loggers (uvicorn, transformers) keep their own lines at warning level.
    """
    terminal = stream.isatty() and not as_json
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    disable_created_metrics()  # type: ignore[no-untyped-call] # twice the series for no panel
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
