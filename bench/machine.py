"""What a figure was measured on, with which versions, and by which command."""

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

_PACKAGES = ("headrace", "torch", "transformers", "tokenizers")


class Machine(msgspec.Struct, frozen=True):
    """The circumstances of one run of a benchmark."""

    measured_at: str
    processor: str
    cores: int
    memory_gb: float
    system: str
    versions: dict[str, str]
    command: str
    load_before: float
    """The load average of the minute before: above 0.2 or so the figures have company."""

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"Measured on {self.measured_at}: {self.cores} cores of {self.processor}, "
            f"{self.memory_gb:.0f} GB, {self.system}; {versions}; "
            f"load average before: {self.load_before:.2f}.\nRepeat with: {self.command}"
        )


def this_machine(module: str) -> Machine:
    """Describe this machine and the run of ``python -m module`` that this process is."""
    return Machine(
        measured_at=datetime.now(UTC).strftime("%Y-%m-%d"),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        system=f"{platform.system()} {platform.release()}",
        versions={"Python": platform.python_version()} | _versions(),
        command=f"python -m {module} {shlex.join(sys.argv[1:])}".strip(),
        load_before=os.getloadavg()[0],
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
