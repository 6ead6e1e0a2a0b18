"""What a job's log says of its answers: the sum of ``tokens`` since the last ``reset``. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from common.events import Event, Reset, Tokens


@dataclass(frozen=True, slots=True)
class Emitted:
    """One answer as far as it was logged.

    ``ids`` are all generated token IDs, ``text`` is the text that was sent for them (it can be
    shorter than their decoding: half a character or a possible stop string is held back).
    ``echo`` is the prompt's text, where the job asked for it and it was sent, and
    ``num_echo_logprobs`` says how many of its tokens' logprobs were.
    """

    ids: tuple[int, ...] = ()
    text: str = ""
    echo: str = ""
    num_echo_logprobs: int = 0


NOTHING = Emitted()


def emitted(events: Iterable[Event], choice: int = 0) -> Emitted:
    """Return the answer of that number as these events make it."""
    ids: list[int] = []
    text: list[str] = []
    echo: list[str] = []
    num_logprobs = 0
    for event in events:
        match event:
            case Tokens(echo=True) if event.choice == choice:
                echo.append(event.text)
                num_logprobs += len(event.logprobs)
            case Tokens() if event.choice == choice:
                ids += event.ids
                text.append(event.text)
            case Reset():
                ids, text, echo, num_logprobs = [], [], [], 0
            case _:
                continue
    return Emitted(tuple(ids), "".join(text), "".join(echo), num_logprobs)


def emitted_choices(events: Iterable[Event], n: int) -> tuple[Emitted, ...]:
    """Return the ``n`` answers that these events make."""
    kept = tuple(events)
    return tuple(emitted(kept, choice) for choice in range(n))


def num_emitted(events: Iterable[Event]) -> int:
    """Return how many tokens all answers have as these events make them."""
    num_ids = 0
    for event in events:
        if isinstance(event, Tokens):
            num_ids += len(event.ids)
        elif isinstance(event, Reset):
            num_ids = 0
    return num_ids
