"""One request to an upstream: sent until its first text came, then read to its end."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from common.jobs import FinishReason, JobSpec
from worker.engine.protocol import Delta, Finished, Prefilled
from worker.engine.remote.openai_body import request_of
from worker.engine.remote.openai_stream import DONE, AnswerReader, UpstreamFault
from worker.engine.remote.upstream import Unavailable, Upstream

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Patience:
    """How an upstream that is away is waited for. Durations are seconds.

    A request is sent ``tries`` times at most; the pause between two doubles from ``first_s`` to
    ``longest_s``, and is longer, up to ``longest_retry_after_s``, where the upstream asks for it.
    A worker that starts waits ``load_s`` for its upstream.
    """

    tries: int = 6
    first_s: float = 0.5
    longest_s: float = 8.0
    longest_retry_after_s: float = 60.0
    load_s: float = 300.0

    def pause_s(self, failures: int, retry_after_s: float) -> float:
        """Return the pause after so many failures (≥ 1), of random length: herds must part."""
        pause_s = min(self.first_s * 2.0 ** min(failures - 1, 32), self.longest_s)
        asked_s = min(retry_after_s, self.longest_retry_after_s)
        return max(pause_s * random.uniform(0.5, 1.0), asked_s)  # noqa: S311 - it is no secret


class Exchange:
    """Asks for the answers of one job, and asks again as long as that repeats no text."""

    def __init__(self, upstream: Upstream, patience: Patience, spec: JobSpec, model: str) -> None:
        self._upstream = upstream
        self._patience = patience
        self._spec = spec
        self._path, self._body = request_of(spec, model)
        self._reader = AnswerReader(spec)  # of the newest connection

    def cancelled(self) -> Finished:
        """Return the end of a job that is cancelled now."""
        return Finished(FinishReason.CANCELLED, completion_tokens=self._reader.num_heard)

    async def outputs(self) -> AsyncGenerator[Delta | Prefilled | Finished]:
        """Yield what the upstream says, up to ``Finished``; raises ``UpstreamFault`` without one.

        Leaving early closes the connection.
        """
        failures = 0
        while True:
            reader = self._reader = AnswerReader(self._spec)
            try:
                async with aclosing(self._deltas(reader)) as deltas:
                    async for delta in deltas:
                        yield delta
            except Unavailable as error:
                failures += 1
                await self._pause(error, failures, reader)
            else:
                if reader.prefilled is not None:
                    yield reader.prefilled
                yield reader.end
                return

    async def _deltas(self, reader: AnswerReader) -> AsyncGenerator[Delta]:
        """Yield the text of one connection; returns only when the answers are whole."""
        async with aclosing(self._upstream.frames(self._path, self._body)) as frames:
            try:
                async for data in frames:
                    if data == DONE:
                        break
                    for delta in reader.take(data):
                        yield delta
            except (Unavailable, UpstreamFault):
                if not reader.is_whole:  # else only the usage is lost
                    raise
        if not reader.is_whole:
            raise Unavailable("it closed the stream before the answer's end")

    async def _pause(self, error: Unavailable, failures: int, reader: AnswerReader) -> None:
        if reader.num_heard:
            raise UpstreamFault(
                "upstream-cut", f"The upstream broke off in mid-answer: {error}."
            ) from error
        if failures >= self._patience.tries:
            raise UpstreamFault(
                "upstream-error", f"The upstream failed {failures} times: {error}."
            ) from error
        pause_s = self._patience.pause_s(failures, error.retry_after_s)
        reason = self._upstream.redacted(str(error))
        _log.warning("upstream_unavailable", reason=reason, pause_s=round(pause_s, 2))
        await asyncio.sleep(pause_s)
