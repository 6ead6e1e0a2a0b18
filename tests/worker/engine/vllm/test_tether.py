"""What is tethered ends with the process that holds the tether, however that dies."""

import os
import signal
import subprocess
import sys

from worker.engine.vllm.tether import Tether

_OWNER = """
import subprocess, sys, time
from worker.engine.vllm.tether import Tether
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
tether = Tether()
tether.bind([child.pid])
print("tethered", flush=True)
time.sleep(600)
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
