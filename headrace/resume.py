"""Following a job: its events once each and in order, whatever happens to the connection."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

import httpx2
import msgspec

from common.events import Event, is_terminal
from headrace.errors import ProtocolError, StreamCut
from headrace.problems import problem_of, problem_of_event

Notice = Callable[[str], None]

LONGEST_RETRY_AFTER_S = 120.0
_NO_CONTENT = 204
_PROBLEM = "problem"  # the name of the last words of a stream that cannot go on
_TRY_LATER = frozenset({429, 502, 503, 504})

_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a follower goes on without news. Durations are seconds.

    ``tries`` connections in a row may bring nothing; the pause between them doubles from
    ``first_s`` to ``longest_s``. An open stream is given up after ``silence_s`` without a byte
    (gateways ping every 5 s), and one that held for ``good_s`` counts as news.
    """

    tries: int = 8
    first_s: float = 0.25
    longest_s: float = 5.0
    silence_s: float = 30.0
    good_s: float = 10.0

    def pause_s(self, failures: int) -> float:
        """Return the pause after so many failures (≥ 1) in a row."""
        return float(min(self.first_s * 2.0 ** min(failures - 1, 32), self.longest_s))


class _Cut(Exception):
    """The connection is over, the job is not."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Follower:
    """A cursor into the events of one job."""

    def __init__(
        self,
        http: httpx2.AsyncClient,
        job_id: str,
        after: int,
        patience: Patience,
        notice: Notice | None = None,
    ) -> None:
        self._http = http
        self._job_id = job_id
        self._patience = patience
        self._notice = notice
        self.position = after
        """The number of the last event that was handed out, -1 for none."""
        self._failures = 0  # connections in a row that brought nothing

    async def events(self) -> AsyncGenerator[tuple[int, Event]]:
        """Yield (n, event) up to the terminal event; raises ``StreamCut`` without one."""
        while True:
            began = time.monotonic()
            try:
                async with aclosing(self._connection()) as connection:
                    async for event in connection:
                        self._failures = 0
                        yield self.position, event
            except _Cut as cut:
                if time.monotonic() - began >= self._patience.good_s:
                    self._failures = 0
                await self._pause(cut)
            else:
                return

    async def _connection(self) -> AsyncGenerator[Event]:
        """Yield new events of one connection; returns only after the terminal one."""
        headers = {} if self.position < 0 else {"Last-Event-ID": str(self.position)}
        timeout = httpx2.Timeout(10, read=self._patience.silence_s)
        url = f"/v1/jobs/{self._job_id}/events"
        try:
            async with self._http.sse(url, headers=headers, timeout=timeout) as source:
                await _check(source.response)
                if source.response.status_code == _NO_CONTENT:
                    return  # the caller has the terminal event already
                async for message in source:
                    event = self._accept(message)
                    if event is not None:
                        yield event
                        if is_terminal(event):
                            return
        except httpx2.SSEError as error:
            raise ProtocolError(f"the gateway's stream cannot be read: {error}") from error
        except httpx2.TransportError as error:
            raise _Cut(str(error) or type(error).__name__) from error
        raise _Cut("the gateway ended the stream before the job's end")

    def _accept(self, message: httpx2.ServerSentEvent) -> Event | None:
        """Return the event and move the cursor; None for what brings no news."""
        if not message.data:  # a lone `retry:` field
            return None
        if message.event == _PROBLEM:
            raise problem_of_event(message.data)
        try:
            n, event = int(message.id), _decoder.decode(message.data)
        except (ValueError, msgspec.DecodeError) as error:
            raise ProtocolError(
                f"the gateway sent an event that this client cannot read: {error}"
            ) from error
        if n <= self.position:
            return None
        # n may jump: the gateway sends a reader that lags several `tokens` events as one.
        self.position = n
        return event

    async def _pause(self, cut: _Cut) -> None:
        self._failures += 1
        if self._failures >= self._patience.tries:
            raise StreamCut(self._job_id, self.position, str(cut)) from cut
        pause_s = self._patience.pause_s(self._failures)
        if cut.retry_after_s is not None:
            pause_s = min(max(pause_s, cut.retry_after_s), LONGEST_RETRY_AFTER_S)
        if self._notice is not None:
            self._notice(f"{cut}; going on after event {self.position} in {pause_s:g} s")
        await asyncio.sleep(pause_s)


async def _check(response: httpx2.Response) -> None:
    """Raise for an answer without events: ``_Cut`` where waiting may help."""
    if response.is_success:
        return
    await response.aread()
    problem = problem_of(response)
    if response.status_code in _TRY_LATER:
        raise _Cut(problem.detail, problem.retry_after_s)
    raise problem
