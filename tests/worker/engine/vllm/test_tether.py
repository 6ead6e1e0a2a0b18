"""What is tethered ends with the process that holds the tether, however that dies."""

import os
import signal
import subprocess
import sys

import pytest

from worker.engine.vllm import tether as tether_module
from worker.engine.vllm.tether import Tether

_OWNER = """
import signal, subprocess, sys
from worker.engine.vllm.tether import Tether
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
tether = Tether()
tether.bind([child.pid])
print("tethered", flush=True)
signal.pause()
"""

_FORKING_OWNER = """
import os, signal, subprocess, sys
from worker.engine.vllm.tether import Tether
tether = Tether()
forked = os.fork()
if not forked:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.pause()
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
tether.bind([child.pid])
print(forked, flush=True)
signal.pause()
"""


def test_a_killed_owner_leaves_nothing() -> None:
    """The child holds the owner's output open, so its end shows that both are gone."""
    with subprocess.Popen([sys.executable, "-c", _OWNER], stdout=subprocess.PIPE) as owner:
        assert owner.stdout
        assert owner.stdout.readline() == b"tethered\n"
        os.kill(owner.pid, signal.SIGKILL)
        assert owner.stdout.read() == b""


def test_a_cut_tether_ends_nobody() -> None:
    """After an orderly end the process IDs may belong to others."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        tether = Tether()
        tether.bind([child.pid])
        tether.cut()
        assert child.poll() is None
        child.communicate(b"\n")
    assert child.returncode == 0


@pytest.mark.timeout(30)
def test_a_forked_child_does_not_keep_the_tether() -> None:
    """It has the owner's files, and may outlive it."""
    with subprocess.Popen([sys.executable, "-c", _FORKING_OWNER], stdout=subprocess.PIPE) as owner:
        assert owner.stdout
        forked = int(owner.stdout.readline())
        try:
            os.kill(owner.pid, signal.SIGKILL)
            assert owner.stdout.read() == b""
        finally:
            os.kill(forked, signal.SIGKILL)


def test_a_later_process_with_the_same_id_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Race: what was bound has ended, and the kernel gave its ID to a stranger."""
    monkeypatch.setattr(tether_module, "_start_time", lambda _pid: "1")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        tether = Tether()
        tether.bind([stranger.pid])
        assert tether._watcher.stdin
        tether._watcher.stdin.close()
        assert tether._watcher.wait() == 0
        stranger.communicate(b"\n")
    assert stranger.returncode == 0
