"""Run the public conformance suite of Durable Streams against ``/v1/streams/{id}``.

    python -m tests.conformance

Prints what each group of the suite came to, in the form of ``docs/conformance.md``; fails when a
test that applies does not pass, or when that document says something else.
"""

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import uvicorn
import uvloop

from common.connections import command_client
from common.keys import Keys
from common.settings import Settings
from gateway import durable_streams
from gateway.main import listen
from tests.conformance.adapter import Adapter
from tests.conformance.groups import GROUPS
from tests.gateway.running import running_gateway
from tests.support.servers import STARTABLE, Server

FOLDER = Path(__file__).parent
DOCUMENT = FOLDER.parents[1] / "docs" / "conformance.md"
ORIGIN = "https://example.com"  # the suite's, for CORS
LONG_POLL_S = 1.0
TEST_S = 30.0  # its own default is 5 s, which a busy machine needs for 100,000 comparisons
SUITE_S = 540.0
UNUSABLE = 3


@dataclass(frozen=True)
class Result:
    """One test of the suite."""

    group: str
    name: str
    has_passed: bool

    @property
    def applies(self) -> bool:
        """Tell whether it tests what we serve."""
        return GROUPS[self.group].applies(self.name)


@asynccontextmanager
async def running_adapter(folder: Path) -> AsyncIterator[str]:
    """Start a Valkey, a gateway and the adapter; give the address for the suite."""
    server = Server(STARTABLE[0].binary, folder)  # type: ignore[arg-type] # it is startable
    server.start()
    keys = Keys("conformance")
    settings = Settings(  # type: ignore[call-arg] # the others have defaults
        redis=server.url,
        key_prefix=keys.prefix,
        allowed_origins=ORIGIN,
        max_body_bytes=16 * 1024**2,
    )
    try:
        async with (
            aclosing(command_client(server.url)) as redis,
            running_gateway(settings) as gateway,
        ):
            listener = listen("127.0.0.1", 0)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            adapter = Adapter(gateway.url, redis, keys)
            config = uvicorn.Config(adapter.app(), lifespan="off", log_level="error")
            door = uvicorn.Server(config)
            task = asyncio.create_task(door.serve(sockets=[listener]))
            try:
                yield url
            finally:
                door.should_exit = door.force_exit = True
                await task
    finally:
        server.stop()


async def run_suite(folder: Path) -> list[Result]:
    """Run the whole suite and return what each test came to."""
    report = folder / "report.json"
    with patch.object(durable_streams, "LONG_POLL_S", LONG_POLL_S):
        async with running_adapter(folder) as url, asyncio.timeout(SUITE_S):
            process = await asyncio.create_subprocess_exec(
                *("npx", "vitest", "run", "--reporter=json", f"--outputFile={report}"),
                f"--testTimeout={round(1000 * TEST_S)}",
                cwd=FOLDER,
                env=os.environ | {"CONFORMANCE_URL": url, "CI": "1"},
                stdout=asyncio.subprocess.DEVNULL,
            )
            await process.wait()
    [file] = json.loads(report.read_text())["testResults"]
    return [
        Result(test["ancestorTitles"][0], _name(test), test["status"] == "passed")
        for test in file["assertionResults"]
    ]


def _name(test: dict[str, list[str]]) -> str:
    return " > ".join([*test["ancestorTitles"][1:], str(test["title"])])


def install() -> bool:
    """Get the suite, unless it is there; tell whether it could be had."""
    if not (shutil.which("node") and shutil.which("npm")):
        print("make conformance needs Node.js 20 or newer with npm; https://nodejs.org")
        return False
    if (FOLDER / "node_modules").exists():
        return True
    return os.spawnlp(os.P_WAIT, "npm", "npm", "ci", "--prefix", str(FOLDER), "--silent") == 0


def table(results: list[Result]) -> list[str]:
    """Return the document's rows: the group, its tests, those that apply, why others do not."""
    passed, applicable, all_of = Counter[str](), Counter[str](), Counter[str]()
    for result in results:
        all_of[result.group] += 1
        if result.applies:
            applicable[result.group] += 1
            passed[result.group] += result.has_passed
    rows = []
    for group, num in all_of.items():
        counts = f"{passed[group]} of {applicable[group]}" if applicable[group] else "none"
        rows.append(f"| {group} | {num} | {counts} | {GROUPS[group].reason} |")
    total = f"{sum(passed.values())} of {sum(applicable.values())}"
    rows.append(f"| **all** | **{len(results)}** | **{total}** | |")
    return rows


def main() -> int:
    """Run, print, compare; return the exit code."""
    if not install():
        return UNUSABLE
    with tempfile.TemporaryDirectory() as folder:
        results = uvloop.run(run_suite(Path(folder)))
    rows = table(results)
    print("\n".join(rows))
    failed = [result for result in results if result.applies and not result.has_passed]
    for result in failed:
        print(f"FAILED {result.group}: {result.name}")
    document = DOCUMENT.read_text(encoding="utf-8").splitlines()
    missing = [row for row in rows if row not in document]
    for row in missing:
        print(f"docs/conformance.md does not say: {row}")
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
