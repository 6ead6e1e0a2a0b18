"""The faults that Headrace is built to live with, and which tests show that it does.

``python -m tests.faults.catalogue`` prints them as the table of ``docs/faults.md``. A test says
which fault it injects with ``@pytest.mark.fault(24)``; one that takes the protection away, and
shows that the fault bites then, with ``@pytest.mark.control(24)``. Both are found by reading the
source, so that the table never depends on what was run.
"""

import ast
import enum
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parents[1]


class Group(enum.StrEnum):
    """Where a fault comes from."""

    WORKER = "Worker"
    REDIS = "Redis"
    READER = "Gateway and client"
    MEANING = "Semantics"
    METHOD = "Method"


class Kind(enum.StrEnum):
    """The two marks."""

    FAULT = "fault"
    CONTROL = "control"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. ``reason`` says why a test, a control or both are missing."""

    number: int
    group: Group
    name: str
    reason: str = ""


def _faults(group: Group, first: int, *names: str) -> tuple[Fault, ...]:
    return tuple(Fault(number, group, name) for number, name in enumerate(names, first))


_WITHOUT_TEST = {
    36: "webhooks come with the control process, which is not there yet",
    41: "`make conformance` runs it, outside of pytest because of Node.js: docs/conformance.md",
}

_NAMES = (
    *_faults(
        Group.WORKER,
        1,
        "SIGKILL before the first token, in mid-stream, before and after the end is written",
        "A worker frozen past its lease wakes up after the takeover and writes on",
        "The interpreter, or its event loop, blocked for longer than the lease",
        "An engine that raises, hangs or exits",
        "A payload that kills every worker, one that cannot be read, an entry without a body",
        "SIGTERM in prefill and in decoding, a second signal, a drain that takes too long",
        "Two versions in one fleet",
        "One name for two workers; a consumer removed with what it still holds",
        "SIGKILL of the worker that holds the sweep",
        "SIGKILL with jobs claimed and not started",
    ),
    *_faults(
        Group.REDIS,
        11,
        "A restart with and without its file, FLUSHALL, a record or a log deleted or expired",
        "CLIENT KILL of commands and subscriptions, again and again",
        "Replies cut, truncated, delayed or swallowed; a command cancelled in mid-reply",
        "A reply lost after the write was applied",
        "A server that stands still for longer than the timeout and the lease",
        "A healthy subscription on which nothing arrives",
        "The limit of an output buffer",
        "Memory full; a server that evicts",
        "Forgotten scripts, in a pipeline too",
        "A failover that loses the last writes; moved slots",
        "A clock that jumps, of Redis or of a worker",
        "No Redis at the start of gateway and worker",
    ),
    *_faults(
        Group.READER,
        23,
        "A gateway killed, restarted or frozen with open streams",
        "A disconnect after every event; cursors of the future, of other jobs, of no job",
        "Attaching while tokens are appended; two tabs, one leaves",
        "Live messages repeated, reordered and dropped",
        "The live message of the end is lost",
        "A reader that takes nothing, a byte at a time, or vanishes without a word",
        "A client gone before its first event; HEAD on a stream",
        "A last frame that is larger than the socket's buffer",
        "Line breaks, NUL and field names in tokens; empty, repeated, long and half characters",
    ),
    *_faults(
        Group.MEANING,
        32,
        "One Idempotency-Key at once, with another payload, after the end, after expiry",
        "A cancel at every stage, twice, by a stranger, with a dead worker",
        "A deadline in the queue, in mid-answer, during a takeover",
        "A tenant with ten thousand jobs beside one with a single one",
        "A webhook's receiver that fails",
        "Keys and memory that are never given back",
    ),
    *_faults(
        Group.METHOD,
        38,
        "Seeded lives with crashes, and a line that plays them again",
        "Random operations keep the log's invariants",
        "Two implementations of Redis give the same answers",
        "An external suite of conformance",
        "Every fault has a test that can fail",
    ),
)

FAULTS = tuple(
    Fault(fault.number, fault.group, fault.name, _WITHOUT_TEST.get(fault.number, ""))
    for fault in _NAMES
)

Marks = dict[int, list[str]]


@dataclass(frozen=True, slots=True)
class Index:
    """Which tests inject each fault, and which show that it bites; by fault, in order of names."""

    marks: Mapping[Kind, Marks] = field(
        default_factory=lambda: {kind: defaultdict(list) for kind in Kind}
    )

    @classmethod
    def of(cls, folder: Path = TESTS) -> "Index":
        """Read every test module below the folder."""
        index = cls()
        for path in sorted(folder.rglob("test_*.py")):
            for kind, number, test in _marks_of(path.read_text()):
                found = index.marks[kind][number]
                name = f"{path.relative_to(folder)}::{test}"
                if name not in found:
                    found.append(name)
        return index

    def tests(self, kind: Kind, number: int) -> list[str]:
        """Return the tests with this mark."""
        return self.marks[kind].get(number, [])

    def gaps(self) -> list[str]:
        """Return what is missing, and what is excused or marked without need."""
        found = [gap for fault in FAULTS for gap in self._gaps_of(fault)]
        known = {fault.number for fault in FAULTS}
        unknown = sorted({number for marks in self.marks.values() for number in marks} - known)
        return found + [f"there is no fault {number}" for number in unknown]

    def _gaps_of(self, fault: Fault) -> Iterator[str]:
        missing = [kind for kind in Kind if not self.tests(kind, fault.number)]
        if fault.reason and not missing:
            yield f"fault {fault.number} has all it needs: its reason can go"
        if not fault.reason:
            yield from (f"fault {fault.number} ({fault.name}) has no {kind}" for kind in missing)


def _marks_of(source: str) -> Iterator[tuple[Kind, int, str]]:
    """Yield (kind, fault, test) of a module; its ``pytestmark`` counts for each of its tests."""
    body = ast.parse(source).body
    of_module = [
        mark
        for node in body
        if isinstance(node, ast.Assign) and _is_pytestmark(node)
        for mark in _marks_in(node.value)
    ]
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_test(node.name):
            own = [mark for decorator in node.decorator_list for mark in _marks_in(decorator)]
            for kind, number in of_module + own:
                yield kind, number, node.name


def _is_pytestmark(node: ast.Assign) -> bool:
    return any(isinstance(name, ast.Name) and name.id == "pytestmark" for name in node.targets)


def _is_test(name: str) -> bool:
    return name.startswith("test_")


def _marks_in(expression: ast.expr) -> Iterator[tuple[Kind, int]]:
    """Yield the marks of a decorator, those of its ``pytest.param`` included."""
    for call in ast.walk(expression):
        if isinstance(call, ast.Call) and (kind := _kind_of(call.func)):
            for argument in call.args:
                assert isinstance(argument, ast.Constant), "a mark says the faults' numbers"
                yield kind, int(str(argument.value))


def _kind_of(function: ast.expr) -> Kind | None:
    if not isinstance(function, ast.Attribute) or function.attr not in set(Kind):
        return None
    owner = function.value
    return (
        Kind(function.attr) if isinstance(owner, ast.Attribute) and owner.attr == "mark" else None
    )


def table(index: Index) -> str:
    """Return the faults with their tests in Markdown."""
    lines: list[str] = []
    for group in Group:
        lines += [f"### {group}", "", "| | fault | tests | controls |", "|---:|---|---|---|"]
        for fault in FAULTS:
            if fault.group is group:
                tests, controls = (
                    _cell(index.tests(kind, fault.number), fault.reason) for kind in Kind
                )
                lines.append(f"| {fault.number} | {fault.name} | {tests} | {controls} |")
        lines.append("")
    return "\n".join(lines)


def _cell(tests: list[str], reason: str) -> str:
    if not tests:
        return f"none: {reason}"
    by_file: defaultdict[str, list[str]] = defaultdict(list)
    for test in tests:
        file, _, name = test.partition("::")
        by_file[file].append(name.removeprefix("test_").replace("_", " "))
    return "<br>".join(f"`{file}`: {'; '.join(names)}" for file, names in by_file.items())


if __name__ == "__main__":
    print(table(Index.of()))
