"""Printing a job's answers on a terminal: the first as it comes, the others behind it."""

from common.events import Tokens
from headrace.terminal import write


class AnswerPrinter:
    """Prints the text of ``n`` answers. More than one have a heading each."""

    def __init__(self, n: int = 1) -> None:
        self._n = n
        self._echo = ""  # the prompt, where the job puts it before its answers
        self._others = [""] * (n - 1)  # until the first one is whole
        self._has_begun = False  # something of the first one was printed
        self._in_line = False  # its last line has no end yet

    def take(self, tokens: Tokens) -> None:
        """Take what comes next of an answer, and print it if it is the first one's."""
        if tokens.echo:
            self._echo += tokens.text
        if tokens.choice == 0:
            self._print(tokens.text)
        elif tokens.choice < self._n:
            self._others[tokens.choice - 1] += tokens.text

    def end_line(self) -> None:
        """End the line that was begun."""
        if self._in_line:
            self._print("\n")

    def reset(self) -> None:
        """Discard the answers so far; they come again."""
        self.end_line()
        self._echo, self._others = "", [""] * (self._n - 1)
        self._has_begun = False

    def finish(self) -> None:
        """Print what was kept."""
        self.end_line()
        self._begin()
        for number, text in enumerate(self._others, 2):
            write(self._heading(number))
            self._print(self._echo + text)
            self.end_line()

    def _print(self, text: str) -> None:
        if not text:
            return
        self._begin()
        write(text)
        self._in_line = not text.endswith("\n")

    def _begin(self) -> None:
        """Print the first heading, also where nothing comes under it: the others follow it."""
        if not self._has_begun and self._n > 1:
            write(self._heading(1))
        self._has_begun = True

    def _heading(self, number: int) -> str:
        return f"--- answer {number} of {self._n} ---\n"


class SilentPrinter(AnswerPrinter):
    """Prints nothing: the answers are shown in another form."""

    def take(self, tokens: Tokens) -> None:
        """Drop it."""
