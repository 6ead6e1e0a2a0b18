"""Answers on a terminal."""

import pytest

from common.events import Tokens
from headrace.printing import AnswerPrinter, SilentPrinter

FIRST, SECOND = Tokens(0, (1,), "one\n"), Tokens(0, (2,), "two", choice=1)


def test_a_single_answer_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is added but the last line break."""
    printer = AnswerPrinter()
    printer.take(Tokens(0, (1,), "a"))
    assert capsys.readouterr().out == "a"
    printer.finish()
    printer.finish()
    assert capsys.readouterr().out == "\n"


def test_the_first_of_several_does_not_wait(capsys: pytest.CaptureFixture[str]) -> None:
    """The others come behind it, under headings; line breaks are not doubled."""
    printer = AnswerPrinter(2)
    printer.take(SECOND)
    printer.take(FIRST)
    assert capsys.readouterr().out == "--- answer 1 of 2 ---\none\n"
    printer.finish()
    assert capsys.readouterr().out == "--- answer 2 of 2 ---\ntwo\n"


def test_an_empty_first_answer_keeps_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    """A model may end at once; the headings are in order all the same."""
    printer = AnswerPrinter(2)
    printer.take(SECOND)
    printer.finish()
    assert capsys.readouterr().out == "--- answer 1 of 2 ---\n--- answer 2 of 2 ---\ntwo\n"


def test_a_reset_discards_what_was_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """The answers come again, with their headings."""
    printer = AnswerPrinter(2)
    printer.take(SECOND)
    printer.reset()
    printer.take(FIRST)
    printer.finish()
    assert capsys.readouterr().out == "--- answer 1 of 2 ---\none\n--- answer 2 of 2 ---\n"


def test_an_answer_that_was_not_announced_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Who follows the first answer only sees only that."""
    printer = AnswerPrinter()
    printer.take(SECOND)
    printer.finish()
    assert capsys.readouterr().out == ""


def test_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    """Also at the end."""
    printer = SilentPrinter()
    printer.take(FIRST)
    printer.finish()
    assert capsys.readouterr().out == ""
