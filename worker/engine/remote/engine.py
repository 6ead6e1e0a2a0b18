"""The remote engine: any OpenAI-compatible server (vLLM, SGLang, llama.cpp, Ollama, hosted ones).

A remote answer has text and no token IDs of ours, so no worker can continue it: a job whose worker
died in mid-answer begins anew if it said ``allow_reset``, and fails otherwise.
"""

import asyncio
import time
from contextlib import aclosing

import structlog

from common.errors import StartupFailed
from worker.engine.answer import TakeoverMismatch
from worker.engine.answers import rest_of_echo
from worker.engine.options import EngineOptions
from worker.engine.protocol import UNRESUMABLE, EngineInfo, Progress, Refused, Request
from worker.engine.remote.exchange import Exchange, Patience
from worker.engine.remote.openai_stream import UpstreamFault
from worker.engine.remote.upstream import Unavailable, Upstream, UpstreamModel
from worker.engine.task_engine import Ongoing, TaskEngine

_log = structlog.get_logger()

_NUM_NAMED = 5


class RemoteEngine(TaskEngine):
    """Runs up to ``capacity`` requests at once on the upstream, each over its own connection."""

    def __init__(self, options: EngineOptions, patience: Patience | None = None) -> None:
        super().__init__("remote", options.capacity)
        self._model = options.model
        self._capacity = options.capacity
        self._upstream = Upstream(options.upstream, options.upstream_key)
        self._patience = patience or Patience()

    async def load(self, progress: Progress) -> EngineInfo:
        """Ask the upstream for its models; wait for one that is not there yet."""
        models = await self._wait_for_models(progress)
        offered = next((model for model in models if model.id == self._model), None)
        if models and offered is None:
            raise StartupFailed(
                f"The upstream {self._upstream.host} does not offer {self._model!r}; "
                f"--model can be {_named(models)}."
            )
        context_len = (offered.max_model_len if offered else None) or 0
        return EngineInfo(self._model, "remote", "", context_len, self._capacity)

    async def probe(self, _request: Request) -> str:
        """Return "": what an upstream holds is not known."""
        return ""

    async def close(self) -> None:
        """Close all connections; what runs upstream ends with them."""
        await super().close()
        await self._upstream.close()

    async def _wait_for_models(self, progress: Progress) -> tuple[UpstreamModel, ...]:
        began = time.monotonic()
        failures = 0
        while True:
            progress(f"asking {self._upstream.host}", self._waited(began))
            try:
                return await self._upstream.models()
            except Unavailable as error:
                failures += 1
                reason = self._upstream.redacted(str(error))
                if self._waited(began) >= 1:
                    raise StartupFailed(
                        f"The upstream {self._upstream.host} cannot be used: {reason}."
                    ) from error
                _log.warning("waiting_for_upstream", upstream=self._upstream.host, reason=reason)
                await asyncio.sleep(self._patience.pause_s(failures, error.retry_after_s))

    def _waited(self, began: float) -> float:
        return min(1.0, (time.monotonic() - began) / self._patience.load_s)

    async def _serve(self, ongoing: Ongoing) -> None:
        try:
            _require_possible(ongoing.request)
            await self._exchange(ongoing)
        except TakeoverMismatch as error:
            self._say(ongoing, Refused(UNRESUMABLE, str(error)))
        except UpstreamFault as fault:
            num_heard = ongoing.cancelled().completion_tokens
            detail = self._upstream.redacted(str(fault))
            self._say(ongoing, Refused(fault.type, detail, num_heard))

    def _explain(self, error: Exception) -> str | None:
        return self._upstream.redacted(super()._explain(error) or "")

    async def _exchange(self, ongoing: Ongoing) -> None:
        spec = ongoing.request.spec
        # The prompt is said here: so the upstream's text is the answer and nothing else.
        echo = rest_of_echo(spec, spec.prompt or "", ongoing.request.emitted)
        if echo is not None:
            self._say(ongoing, echo)
        exchange = Exchange(self._upstream, self._patience, spec, self._model)
        ongoing.cancelled = exchange.cancelled
        async with aclosing(exchange.outputs()) as outputs:
            async for output in outputs:
                self._say(ongoing, output)


def _require_possible(request: Request) -> None:
    """Raise for a job that no upstream can be asked for."""
    spec = request.spec
    if spec.builds_on_stored:
        raise UpstreamFault(
            "not-supported",
            "A remote model stores no prompts; send the whole prompt or all messages.",
        )
    if spec.echo and spec.messages is not None:
        raise UpstreamFault(
            "not-supported",
            "A remote model does not show its chat template; send a prompt, or leave out echo.",
        )
    if not any(emitted.ids or emitted.text for emitted in request.emitted):
        return
    if spec.allow_reset:
        raise TakeoverMismatch("The worker of a remote model died in mid-answer.")
    raise UpstreamFault(
        "answer-lost",
        "The worker of a remote model died in mid-answer, which cannot be continued; "
        "submit it again, or with allow_reset.",
    )


def _named(models: tuple[UpstreamModel, ...]) -> str:
    names = ", ".join(model.id[:80] for model in models[:_NUM_NAMED])
    return names if len(models) <= _NUM_NAMED else f"{names}, …"
