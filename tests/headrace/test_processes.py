"""One child process."""

import os
import sys
from pathlib import Path

import pytest

from headrace import processes
from headrace.processes import Child, ChildSpec

pytestmark = pytest.mark.anyio


def spec(log: Path, code: str) -> ChildSpec:
    """Return a child that runs ``code``."""
    return ChildSpec("child", (sys.executable, "-I", "-S", "-c", code), log)


async def test_a_child_has_its_own_session_and_pid(tmp_path: Path) -> None:
    """Ctrl-C on the terminal does not reach it, and its ID is the one that it sees itself."""
    code = "import os; print(os.getpid(), os.getsid(0))"
    child = await Child.start(spec(tmp_path / "log", code))
    assert await child.wait() == 0
    assert (tmp_path / "log").read_text().split() == [str(child.pid)] * 2
    assert child.pid != os.getsid(0)


async def test_last_words_prefer_our_own_line(tmp_path: Path) -> None:
    """The line that says why is not always the last one, and older runs do not count."""
    log = tmp_path / "log"
    code = "print('headrace: no model\\nat exit')"
    await (first := await Child.start(spec(log, code))).wait()
    assert first.last_words() == "no model"
    await (second := await Child.start(spec(log, "print('a\\nlast')"))).wait()
    assert second.last_words() == "last"
    await (third := await Child.start(spec(log, "pass"))).wait()
    assert third.last_words() == "it said nothing"


async def test_logs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start puts a log that is too long aside; two are the most there is."""
    monkeypatch.setattr(processes, "LOG_LIMIT", 4)
    log = tmp_path / "worker.log"
    for word in ("first", "second", "third"):
        await (await Child.start(spec(log, f"print({word!r})"))).wait()
    assert log.read_text() == "third\n"
    assert (tmp_path / "worker.old.log").read_text() == "second\n"


async def test_ending_twice_is_harmless(tmp_path: Path) -> None:
    """A child that has ended can be stopped and killed."""
    child = await Child.start(spec(tmp_path / "log", "pass"))
    await child.wait()
    await child.stop()
    child.kill()
