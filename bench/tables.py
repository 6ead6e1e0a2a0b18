"""Tables: for a person at a terminal, and in Markdown for bench/README.md."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

Line = Sequence[str]


def show_table(columns: Line, lines: Sequence[Line], console: Console, title: str = "") -> None:
    """Print the table in Markdown, and to a terminal also drawn."""
    if console.is_terminal:
        console.print(_drawn(columns, lines, title))
    elif title:
        console.print(title, highlight=False, markup=False, soft_wrap=True)
    console.print(markdown(columns, lines), highlight=False, markup=False, soft_wrap=True)


def _drawn(columns: Line, lines: Sequence[Line], title: str) -> Table:
    table = Table(title=title or None, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for line in lines:
        table.add_row(*line)
    return table


def markdown(columns: Line, lines: Sequence[Line]) -> str:
    """Return a Markdown table."""
    rule = ["---", *("--:" for _ in columns[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *lines)) + "\n"
