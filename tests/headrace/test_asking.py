"""Options of a question that are read here."""

import pytest
import typer

from headrace.asking import read_biases


def test_biases_are_read() -> None:
    """Pairs by comma, with or without spaces."""
    assert read_biases("7=-100, 11=2.5,") == {7: -100.0, 11: 2.5}
    assert read_biases("") == {}


@pytest.mark.parametrize("text", ["7", "7=", "=1", "a=1", "7=a", "7=1=2", "7;1"])
def test_biases_that_are_none_are_refused(text: str) -> None:
    """The line shows the form."""
    with pytest.raises(typer.BadParameter, match="ID=BIAS"):
        read_biases(text)
