"""The thread that runs the model: takes commands, makes steps, hands out what they made."""

import queue
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

from worker.engine.local.core import EngineCore
from worker.engine.local.made import Made
from worker.engine.local.sequence import Sequence

TIDY_AFTER_S, CHECK_AFTER_S = 0.002, 1.0
"""How long the thread has to be idle: both hold the interpreter's lock, for half a millisecond and
for one, in which the event loop could not hand out the last tokens."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """The command to forget a sequence."""

    id: str


@dataclass(frozen=True, slots=True)
class Call:
    """The command to call a function between two steps; ``called`` is how others wait for it.

    It is cancelled where the thread ends before.
    """

    function: Callable[[], None]
    called: Future[None] = field(default_factory=Future)

    def obey(self) -> None:
        """Call the function, unless nobody wants it any more; raises what it raises."""
        if not self.called.set_running_or_notify_cancel():
            return
        try:
            self.function()
        except BaseException as error:
            self.called.set_exception(error)
            raise
        self.called.set_result(None)


class Stop:
    """The command to end the thread."""


Command = Sequence | Cancel | Call | Stop


class EngineThread:
    """Runs steps while there are sequences. ``deliver`` gets all that one step made, at once."""

    def __init__(self, core: EngineCore, deliver: Callable[[list[Made]], None]) -> None:
        self._core = core
        self._deliver = deliver
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        # Made by the last step, and not delivered yet.
        self._made: list[Made] = []
        # When the current step, command or chore began; 0 while the thread waits for commands.
        self._busy_since = 0.0

    @property
    def busy_since(self) -> float:
        """When the current step, command or chore began, 0 between them; for any thread."""
        return self._busy_since

    def post(self, command: Command) -> None:
        """Give a command, from any thread; it is obeyed before the next step."""
        self._commands.put(command)

    def cancel(self, sequence_ids: Iterable[str]) -> None:
        """Have sequences forgotten before the next step."""
        for sequence_id in sequence_ids:
            self.post(Cancel(sequence_id))

    def stop(self) -> None:
        """Have the thread end before its next step."""
        self.post(Stop())

    def run(self) -> None:
        """Make steps until ``Stop``; an exception from here is the end of the engine."""
        try:
            self._core.start()
            while self._obey():
                made = self._core.step(self._hand_out)
                self._hand_out()  # where the step failed before the model's part
                self._made = made
            self._hand_out()
        finally:
            self._cancel_calls()

    def _hand_out(self) -> None:
        """Deliver what the last step made. The next one calls this when its batch is made.

        What becomes of the tokens needs the interpreter's lock, which the model does not.
        """
        made, self._made = self._made, []
        if made:
            self._deliver(made)

    def _obey(self) -> bool:
        """Obey all commands given so far, waiting for one while idle; False to end."""
        while (command := self._next()) is not None:
            match command:
                case Sequence():
                    self._core.scheduler.add(command)
                case Cancel(sequence_id):
                    self._core.scheduler.remove(sequence_id)
                case Call():
                    self._hand_out()
                    self._core.scheduler.tidy()  # nobody who has ended comes back after it
                    command.obey()
                case Stop():
                    self._core.scheduler.tidy()
                    return False
        return True

    def _cancel_calls(self) -> None:
        with suppress(queue.Empty):
            while True:
                command = self._commands.get_nowait()
                if isinstance(command, Call):
                    command.called.cancel()

    def _next(self) -> Command | None:
        """Return the next command; ``None`` if there is none and a step is due."""
        self._busy_since = 0.0
        try:
            return self._wait() if self._core.scheduler.is_idle else self._commands.get_nowait()
        except queue.Empty:
            return None
        finally:
            self._busy_since = time.monotonic()

    def _wait(self) -> Command:
        """Return the next command; when there is none for a while, tidy up, and check the books."""
        self._hand_out()
        scheduler = self._core.scheduler
        for idle_s, chore in ((TIDY_AFTER_S, scheduler.tidy), (CHECK_AFTER_S, scheduler.check)):
            with suppress(queue.Empty):
                return self._commands.get(timeout=idle_s)
            self._busy_since = time.monotonic()  # a chore that hangs must show, too
            chore()
            self._busy_since = 0.0
        return self._commands.get()
