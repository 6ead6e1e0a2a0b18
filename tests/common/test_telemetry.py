"""Logs, as a terminal and as a machine read them."""

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from common.telemetry import configure_logging


class Terminal(io.StringIO):
    """A stream that says that a person reads it."""

    def isatty(self) -> bool:
        """Return True."""
        return True


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """The logging of the test process is as before after each test."""
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def _configure(stream: io.StringIO, *, level: str = "info", as_json: bool = False) -> None:
    configure_logging("gateway", level=level, as_json=as_json, stream=stream)


@pytest.mark.parametrize(("stream", "as_json"), [(io.StringIO(), False), (Terminal(), True)])
def test_lines_are_json_for_machines(stream: io.StringIO, as_json: bool) -> None:
    """A file gets JSON, a terminal when it is asked for: the message, its fields, the process."""
    _configure(stream, as_json=as_json)
    structlog.get_logger().info("job finished", job="job_1", tokens=3)
    line = json.loads(stream.getvalue())
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "job finished",
        "job": "job_1",
        "tokens": 3,
        "level": "info",
        "process": "gateway",
    }


def test_lines_are_words_for_a_terminal() -> None:
    """A person sees the message and its fields."""
    stream = Terminal()
    _configure(stream)
    structlog.get_logger().info("job finished", job="job_1")
    line = stream.getvalue()
    assert "job finished" in line
    assert "job_1" in line
    assert not line.startswith("{")


def test_lines_below_the_level_are_not_written() -> None:
    """The level cuts what is less important and keeps the rest."""
    stream = io.StringIO()
    _configure(stream, level="warning")
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud"]


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_an_error_comes_with_its_traceback(stream: io.StringIO) -> None:
    """The traceback is part of the line, and writing it warns of nothing."""
    _configure(stream)
    structlog.get_logger().error("engine failed", exc_info=ValueError("broken"))
    assert "engine failed" in stream.getvalue()
    assert "ValueError" in stream.getvalue()
    assert "broken" in stream.getvalue()
