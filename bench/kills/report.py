"""The rows as a table, on the terminal and in docs/reliability.md."""

from pathlib import Path

import msgspec
from rich.console import Console

from bench.kills.run import Row, pair
from bench.machine import Machine
from bench.tables import markdown, show_table

COLUMNS = (
    "fault",
    "in flight",
    "accepted",
    "ended",
    "tokens lost",
    "repeated",
    "longest gap p50 / p99 s",
    "hit",
    "recovery p50 / p99 s",
    "aim, p99",
)


class Table(msgspec.Struct, frozen=True):
    """All rows under one load."""

    load: str
    text: str
    rows: tuple[Row, ...]


class Report(msgspec.Struct, frozen=True):
    """Everything that one run has found."""

    machine: Machine
    tables: tuple[Table, ...]


def line(row: Row) -> list[str]:
    """Return the cells of a row."""
    return [
        row.fault,
        str(row.in_flight),
        str(row.accepted),
        str(row.ended),
        str(row.lost),
        str(row.repeated),
        pair(row.gaps),
        str(row.affected),
        recovery(row),
        f"≤ {row.aim_s:g}" if row.aim_s else "",
    ]


def recovery(row: Row) -> str:
    """Return p50 and p99 of the recoveries, and of how many jobs if some had none."""
    if len(row.recoveries) in (0, row.affected):
        return pair(row.recoveries)
    return f"{pair(row.recoveries)} ({len(row.recoveries)} of them)"


def show(report: Report, console: Console) -> None:
    """Print the tables, and everything that went wrong."""
    console.print(str(report.machine), highlight=False, markup=False, soft_wrap=True)
    for table in report.tables:
        show_table(COLUMNS, [line(row) for row in table.rows], console, table.text)
    for row in (row for table in report.tables for row in table.rows):
        for problem in row.problems:
            console.print(f"{row.fault}: {problem}", highlight=False, markup=False, soft_wrap=True)


def write(report: Report, page: Path) -> None:
    """Put the tables between their marks in a page."""
    text = page.read_text(encoding="utf-8")
    for table in report.tables:
        rows = markdown(COLUMNS, [line(row) for row in table.rows])
        text = put(text, table.load, f"{table.text}\n\n{rows}\n{report.machine}\n")
    page.write_text(text, encoding="utf-8")


def put(page: str, name: str, content: str) -> str:
    """Return the page with the content between the marks of this name."""
    begin, end = f"<!-- kill-table {name} -->\n", f"<!-- end of kill-table {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the page has no marks for {name!r}")
    return f"{before}{begin}\n{content}\n{end}{after}"
