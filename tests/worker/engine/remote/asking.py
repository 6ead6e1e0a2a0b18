"""Jobs for a remote engine, and how they end."""

from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

from common.emitted import Emitted
from common.jobs import JobSpec, Message
from tests.worker.engine.recorder import Recorder
from tests.worker.engine.remote.upstream_server import MODEL, UpstreamServer
from worker.engine.protocol import Finished, Refused, Request
from worker.engine.remote.engine import RemoteEngine
from worker.engine.remote.exchange import Patience

KEY = "sk-secret"
QUESTION = (Message("user", "Which river?"),)
HASTY = Patience(tries=4, first_s=0.001, longest_s=0.001, load_s=0.05)

Upstream = Callable[..., UpstreamServer]
EngineOf = Callable[..., Awaitable[RemoteEngine]]

_numbers = count()


def job(**fields: Any) -> Request:
    """Return a request: a conversation, unless a prompt is given."""
    emitted = fields.pop("emitted", None)
    fields = {"max_tokens": 8} | fields
    if "prompt" not in fields and "append" not in fields:
        fields = {"messages": QUESTION} | fields
    spec = JobSpec(MODEL, **fields)
    return Request(f"j{next(_numbers)}:1", spec, emitted or (Emitted(),) * spec.n)


async def refused(engine: RemoteEngine, **fields: Any) -> Refused:
    """Submit a job and return why it is refused."""
    recorder = Recorder()
    engine.submit(job(**fields), recorder)
    return await recorder.refused()


async def answered(engine: RemoteEngine, **fields: Any) -> tuple[Recorder, Finished]:
    """Submit a job and return its answer."""
    recorder = Recorder()
    engine.submit(job(**fields), recorder)
    return recorder, await recorder.ended()
