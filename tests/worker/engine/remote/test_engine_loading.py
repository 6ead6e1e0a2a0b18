"""A remote engine's start: the upstream is asked for its models."""

import pytest

from common.errors import StartupFailed
from tests.worker.engine.remote.asking import KEY, EngineOf, Upstream, job
from tests.worker.engine.remote.upstream_server import (
    MODEL,
    Behaviour,
    Exchange,
    cuts_after,
    lists_models,
    replies,
)
from worker.engine.protocol import EngineInfo
from worker.engine.remote.exchange import Patience

pytestmark = pytest.mark.anyio


async def test_loading_asks_for_the_models(upstream: Upstream, engine_of: EngineOf) -> None:
    """A server that tells its context length is believed; one that lists nothing is accepted."""
    engine = await engine_of(upstream(models=lists_models("other", MODEL, max_model_len=2048)))
    steps: list[str] = []
    info = await engine.load(lambda step, _done: steps.append(step))
    assert info == EngineInfo(MODEL, "remote", "", 2048, 4)
    assert steps[0].startswith("asking 127.0.0.1:")
    silent = await engine_of(upstream(models=replies(200, '{"data": null}')))
    assert (await silent.load(lambda _step, _done: None)).context_len == 0
    assert await silent.probe(job()) == ""


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (replies(401, KEY), "refuses the key"),
        (replies(404), "base URL"),
        (replies(302, Location="http://127.0.0.1:1/"), "base URL"),
        (replies(200, "<html>"), "OpenAI-compatible"),
        (replies(503), "cannot be used: it answered 503"),
        (lists_models(*"abcdefg"), "--model can be a, b, c, d, e, …"),
    ],
)
async def test_a_wrong_upstream_stops_the_start(
    models: Behaviour, said: str, upstream: Upstream, engine_of: EngineOf
) -> None:
    """One line says what is wrong, and never the key."""
    engine = await engine_of(upstream(models=models))
    with pytest.raises(StartupFailed) as failed:
        await engine.load(lambda _step, _done: None)
    assert said in str(failed.value)
    assert KEY not in str(failed.value)
    assert "\n" not in str(failed.value)


async def test_an_upstream_that_starts_later_is_waited_for(
    upstream: Upstream, engine_of: EngineOf
) -> None:
    """A worker may be started before its upstream."""
    answers = iter([replies(503), cuts_after(), lists_models(MODEL)])

    async def models(exchange: Exchange) -> None:
        await next(answers)(exchange)

    patient = Patience(first_s=0.001, longest_s=0.001)
    engine = await engine_of(upstream(models=models), patience=patient)
    assert (await engine.load(lambda _step, _done: None)).device == "remote"
