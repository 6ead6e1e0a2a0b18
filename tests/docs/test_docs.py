"""The commands of the README run as they stand, against a real stack with the fake engine."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from headrace.addresses import free_port

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DEFAULT_ADDRESS = "127.0.0.1:8700"
START_S = 60.0
BLOCK_S = 90.0


def blocks(language: str) -> list[tuple[str, str]]:
    """Return (page, text) of every fenced block of the language."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [(page.name, text) for page in PAGES for text in pattern.findall(page.read_text())]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stack's data directory, where `headrace doctor` looks for its server."""
    return tmp_path_factory.mktemp("stack")


@pytest.fixture(scope="module")
def address(data_dir: Path) -> Iterator[str]:
    """The address of a running stack."""
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "headrace", "up", "--engine", "fake", "--workers", "2"]
    with subprocess.Popen(
        [*command, "--port", str(port), "--data-dir", str(data_dir)],
        env=os.environ | {"HEADRACE_FAKE_TOKENS_PER_S": "200"},
        stderr=subprocess.PIPE,
        text=True,
    ) as stack:
        assert stack.stderr is not None
        said = ""
        while f"127.0.0.1:{port}" not in said:  # the banner; an early end closes the pipe
            line = stack.stderr.readline()
            assert line, f"the stack did not start: {said}"
            said += line
        yield f"127.0.0.1:{port}"
        stack.terminate()
        stack.communicate(timeout=START_S)
        assert stack.returncode == 0


def run(command: list[str], address: str, data_dir: Path) -> str:
    """Run a block's command to its end and return what it printed."""
    environment = os.environ | {
        "HEADRACE_URL": f"http://{address}",
        "HEADRACE_DATA_DIR": str(data_dir),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=BLOCK_S, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def until_open(address: str) -> None:
    """Return when the gateway lets everybody in: it looks for API keys every two seconds."""
    deadline = time.monotonic() + BLOCK_S
    while httpx2.get(f"http://{address}/v1/jobs", trust_env=False).status_code != 200:
        assert time.monotonic() < deadline


@pytest.mark.parametrize(("page", "text"), blocks("sh"))
def test_a_shell_block_runs(page: str, text: str, address: str, data_dir: Path) -> None:
    """A shell block of the docs ends with exit code 0; make's targets exist."""
    targets = re.findall(r"^make (\w+)", text, re.MULTILINE)
    if targets:
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
        return
    script = "set -euo pipefail\n" + text.replace(DEFAULT_ADDRESS, address)
    assert run(["bash", "-c", script], address, data_dir)
    until_open(address)


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_a_python_block_runs(page: str, text: str, address: str, data_dir: Path) -> None:
    """A Python block of the docs runs and prints something."""
    assert run([sys.executable, "-c", text.replace(DEFAULT_ADDRESS, address)], address, data_dir)


def test_the_pages_link_to_files_that_exist() -> None:
    """Every relative link of the docs leads to a file."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_changelog_begins_with_the_packages_version() -> None:
    """The changelog's first version is the package's own."""
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version is not None
    assert newest is not None
    assert newest[1].strip("[]") == version[1]
