"""The thread that runs the model: takes commands, makes steps, hands out what they made."""

import queue
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from common.errors import HeadraceError
from worker.engine.protocol import Prefilled, Refused
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence


class RequestFailed(HeadraceError):
    """The model cannot go on with this request; the others are unharmed."""

    def __init__(self, type_: str, detail: str) -> None:
        super().__init__(detail)
        self.refusal = Refused(type_, detail)


class Runner(Protocol):
    """The model as the thread sees it."""

    def start(self) -> None:
        """Prepare the calling thread, which is the only one that calls ``advance``."""
        ...

    def advance(self, sequence: Sequence) -> int | None:
        """Let the model see the next tokens; return the token that follows them, if any."""
        ...


@dataclass(frozen=True, slots=True)
class Cancel:
    """The command to forget a sequence."""

    id: str


class Stop:
    """The command to end the thread."""


Command = Sequence | Cancel | Stop
Made = tuple[str, Prefilled | Refused | int]
"""A request's ID, and what a step made of it; an integer is a token."""


class EngineThread:
    """Runs steps while there are sequences. ``deliver`` gets all that one step made, at once.

    A sequence that has ended, by a token or by a failure, is forgotten without a command.
    """

    def __init__(
        self, runner: Runner, capacity: int, deliver: Callable[[list[Made]], None]
    ) -> None:
        self._runner = runner
        self._scheduler = Scheduler(capacity)
        self._deliver = deliver
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()

    @property
    def num_running(self) -> int:
        """Sequences that have a slot; may be read from any thread."""
        return self._scheduler.num_running

    def post(self, command: Command) -> None:
        """Give a command, from any thread; it is obeyed before the next step."""
        self._commands.put(command)

    def run(self) -> None:
        """Make steps until ``Stop``; an exception from here is the end of the engine."""
        self._runner.start()
        while self._obey():
            made = self._step()
            if made:
                self._deliver(made)

    def _obey(self) -> bool:
        """Obey all commands given so far, waiting for one when idle; tell whether to go on."""
        is_waiting = self._scheduler.is_idle
        while True:
            try:
                command = self._commands.get(block=is_waiting)
            except queue.Empty:
                return True
            is_waiting = False
            match command:
                case Sequence():
                    self._scheduler.add(command)
                case Cancel(sequence_id):
                    self._scheduler.remove(sequence_id)
                case Stop():
                    return False

    def _step(self) -> list[Made]:
        self._scheduler.admit()
        made: list[Made] = []
        for sequence in self._scheduler.plan():
            made += self._advance(sequence)
        return made

    def _advance(self, sequence: Sequence) -> list[Made]:
        is_prefill = sequence.is_prefilling
        try:
            token_id = self._runner.advance(sequence)
        except RequestFailed as error:
            self._scheduler.remove(sequence.id)
            return [(sequence.id, error.refusal)]
        if token_id is None:
            return []
        sequence.ids.append(token_id)
        if sequence.is_over:
            self._scheduler.remove(sequence.id)
        token: Made = (sequence.id, token_id)
        return [(sequence.id, _prefilled(sequence)), token] if is_prefill else [token]


def _prefilled(sequence: Sequence) -> Prefilled:
    return Prefilled(sequence.prompt_len, cached_tokens=0, prefill_s=sequence.prefill_s)
