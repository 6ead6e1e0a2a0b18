"""What people see."""

import pytest

from headrace.terminal import age, progress, write_table


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0s"), (0.4, "0s"), (59, "59s"), (60, "1m"), (7200, "2h"), (200_000, "2d")],
)
def test_ages_are_short(seconds: float, said: str) -> None:
    """One number, one unit."""
    assert age(seconds) == said


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns are as wide as their widest cell, and no line ends in blanks."""
    write_table(("A", "LONG"), [("wide cell", "x"), ("y", "")])
    assert capsys.readouterr().out == "A           LONG\nwide cell   x\ny\n"


def test_a_table_without_rows_is_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing found is no error."""
    write_table(("A", "B"), [])
    assert capsys.readouterr().out == "A   B\n"


def test_progress_is_quiet_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    """What is over in a moment leaves no lines where no terminal is."""
    with progress("Starting") as show:
        for percent in range(100):
            show(f"loading {percent}%")
    assert capsys.readouterr().err == ""
