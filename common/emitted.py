"""What a job's log says of its answer: the sum of its ``tokens`` since the last ``reset``. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from common.events import Event, Reset, Tokens


@dataclass(frozen=True, slots=True)
class Emitted:
    """The answer as far as it was logged.

    ``ids`` are all generated token IDs, ``text`` is the text that was sent for them (it can be
    shorter than their decoding: half a character or a possible stop string is held back).
    """

    ids: tuple[int, ...] = ()
    text: str = ""


NOTHING = Emitted()


def emitted(events: Iterable[Event]) -> Emitted:
    """Return the answer that these events make."""
    ids: list[int] = []
    text: list[str] = []
    for event in events:
        match event:
            case Tokens():
                ids += event.ids
                text.append(event.text)
            case Reset():
                ids, text = [], []
            case _:
                continue
    return Emitted(tuple(ids), "".join(text))
