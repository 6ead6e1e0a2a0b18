"""Records ``docs/demo.svg``: a real stack, a real model, a worker killed in mid-answer.

    .venv/bin/python docs/record_demo.py

What the picture shows is what the commands printed; only the pauses between the lines are lost.
"""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from headrace.addresses import free_port

HEADRACE = [sys.executable, "-m", "headrace"]
QUESTION = "Why do rivers meander?"
SHOWN_CHARS = 120  # of the answer before the kill
WIDTH = 92


def main() -> None:
    """Run the scene and write the picture."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        command = [*HEADRACE, "up", "--workers", "2", "--port", str(port), "--data-dir", folder]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as stack:
            assert stack.stderr is not None
            while url not in stack.stderr.readline():
                continue
            console = play(url)
            stack.send_signal(signal.SIGINT)
            stack.communicate()
    target = Path(__file__).with_name("demo.svg")
    console.save_svg(str(target), title="headrace")


def play(url: str) -> Console:
    """Ask, kill the worker in mid-answer, and return what a terminal showed."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    prompt(console, "headrace up --workers 2 &")
    console.print(f"Headrace is ready at {url}", style="dim", highlight=False)
    prompt(console, f'headrace run "{QUESTION}"')
    command = [*HEADRACE, "run", QUESTION, "--url", url, "--temperature", "0"]
    with subprocess.Popen(
        [*command, "--max-tokens", "90", "--stats"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stderr is not None
        chunks, killed = read_and_kill(run.stdout.fileno(), url)
        stats = run.stderr.read().decode().strip().splitlines()[-1]
    longest = max(range(len(chunks)), key=lambda index: chunks[index][0])
    answer = Text(b"".join(text for _, text in chunks[:longest]).decode())
    answer.append(f" ▌ kill -9 {killed}: {chunks[longest][0]:.0f} s ▐ ", style="bold red")
    answer.append(b"".join(text for _, text in chunks[longest:]).decode().rstrip())
    console.print(answer)
    console.print(stats, style="dim", highlight=False)
    return console


def read_and_kill(stdout: int, url: str) -> tuple[list[tuple[float, bytes]], str]:
    """Return (seconds waited for it, text) of everything printed, and the worker killed."""
    chunks: list[tuple[float, bytes]] = []
    killed, began = "", time.monotonic()
    while text := os.read(stdout, 4096):
        now = time.monotonic()
        chunks.append((now - began if killed else 0.0, text))
        began = now
        if not killed and sum(len(text) for _, text in chunks) > SHOWN_CHARS:
            killed = kill_busy_worker(url)
    return chunks, killed


def prompt(console: Console, command: str) -> None:
    """Show a command as it was typed."""
    console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))


def kill_busy_worker(url: str) -> str:
    """Kill the worker that runs the job; returns its ID."""
    listed = subprocess.run(
        [*HEADRACE, "ps", "--json", "--url", url], capture_output=True, check=True
    )
    busy = next(worker for worker in json.loads(listed.stdout) if worker["running"])
    os.kill(busy["pid"], signal.SIGKILL)
    return str(busy["id"])


if __name__ == "__main__":
    main()
