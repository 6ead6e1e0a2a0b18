"""What a worker asks of an engine.

An engine takes whole jobs (a prompt or messages, not token IDs), because a remote engine has no
tokeniser of ours. It owns tokenisation, decoding and detokenisation, and keeps the first and the
last of them off the thread that runs the model.

For every request that ``submit`` accepted, the sink receives one ``Prefilled`` at most, any number
of ``Delta``, and exactly one ``Finished`` or ``Refused``, in this order, on the event loop from
which ``submit`` was called. (A remote engine hears of the prompt last: its ``Prefilled`` comes
before the end.) After ``cancel`` the end is ``Finished(CANCELLED)``, unless another end
was already on its way. After ``close``, and after ``wait_failed`` has raised, nothing is delivered:
a job that an engine lost is another engine's to finish.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from common.emitted import NOTHING, Emitted
from common.events import ChoiceEnd, TokenLogprob
from common.jobs import FinishReason, JobSpec
from common.registry import KvCacheInfo


@dataclass(frozen=True, slots=True)
class Request:
    """One job for the engine, which continues after what earlier attempts ``emitted``.

    ``id`` is unique per attempt (``job:epoch``). ``emitted`` has one entry per answer (``spec.n``).
    ``base`` are the token IDs of the stored sequence that a job with ``append``, or with nothing,
    builds on. Nothing that is kept for one ``tenant`` may serve another.
    """

    id: str
    spec: JobSpec
    emitted: tuple[Emitted, ...] = (NOTHING,)
    tenant: str = "default"
    base: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The prompt is in the KV cache. ``cached_tokens`` of ``prompt_tokens`` were there already."""

    prompt_tokens: int
    cached_tokens: int
    prefill_s: float


@dataclass(frozen=True, slots=True)
class Delta:
    """New token IDs and the text that became certain with them (either may be empty).

    ``choice`` and ``logprobs`` are as in ``common.events.Tokens``; with ``echo`` the text is the
    prompt's.
    """

    ids: tuple[int, ...]
    text: str
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    echo: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """The job's last answer ended. ``is_eos``: the model itself ended it.

    Where there are several answers, ``choices`` has them all, and ``reason`` and ``is_eos`` are
    the first one's. ``sequence`` is the prompt and the (first) answer in token IDs, for jobs with a
    prompt ID; empty where the engine has no tokeniser of ours. ``completion_tokens`` is set where
    the deltas have no IDs to count.
    """

    reason: FinishReason
    is_eos: bool = False
    choices: tuple[ChoiceEnd, ...] = ()
    sequence: tuple[int, ...] = ()
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The job cannot be done; its neighbours are unharmed. ``type`` is stable.

    ``completion_tokens`` as in ``Finished``: those of an answer that breaks off.
    """

    type: str
    detail: str
    completion_tokens: int | None = None


UNRESUMABLE = "takeover-mismatch"
"""The type of a ``Refused`` for what was emitted: submitted without it, the job can be done."""

Output = Prefilled | Delta | Finished | Refused
Sink = Callable[[Output], None]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself once it is loaded; ``dtype`` is that of the weights."""

    model: str
    device: str
    dtype: str
    context_len: int
    capacity: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for the heartbeat and the metrics. ``tokens_per_s`` is over the last seconds.

    ``prefill_tokens_per_s`` is what a prompt's tokens cost here, 0 while it is not known;
    ``model_s`` the seconds spent in forward passes and sampling since the start.
    """

    running: int = 0
    waiting: int = 0
    tokens_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    kv: KvCacheInfo | None = None
    model_s: float = 0.0


Progress = Callable[[str, float], None]
"""Called while an engine loads, from any thread: what is being done, and how much of it (0…1)."""


class Engine(Protocol):
    """One loaded model. All methods but ``load`` are called on the event loop."""

    async def load(self, progress: Progress) -> EngineInfo:
        """Load the model; raises ``StartupFailed`` with the one line that the user sees."""
        ...

    async def probe(self, request: Request) -> str:
        """Return how much of the prompt is held now: ``hit``, ``partial``, ``miss``, or "".

        Never raises for a bad request: that is said after ``submit``.
        """
        ...

    def submit(self, request: Request, sink: Sink) -> None:
        """Take a request. What is wrong with it is said by ``Refused``, never by raising.

        More requests than ``capacity`` wait inside the engine in order of arrival.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """End a request within one step. An unknown ID is ignored: it has just ended."""
        ...

    def forget(self, tenant: str, ids: tuple[int, ...]) -> None:
        """Have what is kept of a sequence of this tenant dropped, in every tier, soon.

        Requests that come meanwhile may still find some of it.
        """
        ...

    def stats(self) -> EngineStats:
        """Return the current load."""
        ...

    async def wait_failed(self) -> None:
        """Return never, or raise ``EngineFailed`` when the engine cannot go on."""
        ...

    async def close(self) -> None:
        """Stop the engine's threads; running requests get no further output."""
        ...
