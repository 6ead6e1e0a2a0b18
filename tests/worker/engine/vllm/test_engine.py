"""The vLLM engine on a real vLLM with the demo model, where one is installed.

It is no part of `make test`: vLLM wants a torch of its own. See docs/engines.md.
"""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; it has an environment of its own")

from common.emitted import Emitted
from common.errors import EngineFailed
from common.jobs import FinishReason, JobSpec, Message, Sampling
from tests.support.waiting import within
from tests.worker.engine.recorder import Recorder
from worker.engine.options import EngineOptions
from worker.engine.protocol import Delta, Finished, Output, Request
from worker.engine.vllm.engine import VllmEngine

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]

MODEL = os.environ.get("HEADRACE_TEST_MODEL", "")
GREEDY = Sampling(temperature=0)
PROMPTS = ("The river", "Once upon a time", "In 1969 the")


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    """One loaded engine for all tests: starting vLLM takes most of a minute."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    assert MODEL, "set HEADRACE_TEST_MODEL to a model directory"
    made = VllmEngine(EngineOptions(MODEL, Path("/tmp/none"), capacity=4), eager=True)
    await made.load(lambda _step, _done: None)
    yield made
    await made.close()


def job(name: str, *, emitted: Emitted | None = None, **fields: Any) -> Request:
    """Return a greedy request of 16 tokens unless told otherwise."""
    defaults: dict[str, Any] = {"max_tokens": 16, "sampling": GREEDY, "prompt": PROMPTS[0]}
    spec = JobSpec("m", **(defaults | fields))
    return Request(f"{name}:1", spec, (emitted or Emitted(),) * spec.n)


async def run(engine: VllmEngine, request: Request) -> Recorder:
    """Submit a request and wait for its end."""
    recorder = Recorder()
    engine.submit(request, recorder)
    await recorder._end()
    return recorder


async def test_answers_have_ids_text_and_counts(engine: VllmEngine) -> None:
    """Each token comes with its ID, and the prompt's length comes first."""
    recorder = await run(engine, job("plain"))
    assert await recorder.ended() == Finished(FinishReason.LENGTH)
    assert len(recorder.ids) == 16
    assert recorder.prefilled.prompt_tokens == 2
    assert recorder.text.startswith(" ")


async def test_an_answer_is_continued_where_it_stopped(engine: VllmEngine) -> None:
    """Wherever it was cut, the rest is what an undisturbed run says."""
    whole = await run(engine, job("whole", prompt=PROMPTS[1]))
    deltas = [output for output in whole.outputs if isinstance(output, Delta)]
    for cut in range(0, 16, 4):
        said = Emitted(whole.ids[:cut], "".join(delta.text for delta in deltas[:cut]))
        rest = await run(engine, job(f"cut{cut}", prompt=PROMPTS[1], emitted=said))
        assert said.text + rest.text == whole.text
        assert said.ids + rest.ids == whole.ids


async def test_stop_strings_end_the_answer(engine: VllmEngine) -> None:
    """They are found in our text, and vLLM's request is dropped."""
    plain = await run(engine, job("long"))
    stop = plain.text[12:16]
    stopped = await run(engine, job("stopped", stop=(stop,)))
    assert (await stopped.ended()).reason is FinishReason.STOP
    assert stopped.text == plain.text[: plain.text.find(stop)]


async def test_several_answers_and_logprobs(engine: VllmEngine) -> None:
    """Each answer has tokens of its own, and logprobs come with them."""
    request = job("both", n=2, logprobs=2, sampling=Sampling(seed=7))
    recorder = await run(engine, request)
    assert len((await recorder.ended()).choices) == 2
    by_choice: dict[int, list[int]] = {0: [], 1: []}
    for output in recorder.outputs:
        if isinstance(output, Delta):
            by_choice[output.choice] += output.ids
            assert [one.id for one in output.logprobs] == list(output.ids)
            assert all(len(one.top) == 2 for one in output.logprobs)
    assert by_choice[0] != by_choice[1]


async def test_a_seed_is_repeatable(engine: VllmEngine) -> None:
    """The same seed gives the same answer."""
    sampling = Sampling(temperature=0.9, seed=2**63 - 1)
    first = await run(engine, job("first", sampling=sampling))
    assert (await run(engine, job("second", sampling=sampling))).ids == first.ids


async def test_messages_go_through_the_template(engine: VllmEngine) -> None:
    """The model answers as an assistant and ends by itself."""
    asked = (Message("user", "What is the capital of France?"),)
    recorder = await run(engine, job("chat", prompt=None, messages=asked, max_tokens=60))
    assert "Paris" in recorder.text
    assert (await recorder.ended()).is_eos


@pytest.mark.parametrize(
    ("fields", "type_"),
    [
        ({"max_tokens": 100_000}, "prompt-too-long"),
        ({"prompt": ""}, "prompt-empty"),
        ({"logprobs": 1000}, "engine-refused"),
        ({"echo": True, "logprobs": 1}, "not-supported"),
    ],
)
async def test_a_bad_request_fails_alone(
    engine: VllmEngine, fields: dict[str, Any], type_: str
) -> None:
    """Its neighbour is answered."""
    good, bad = Recorder(), Recorder()
    engine.submit(job("good"), good)
    engine.submit(job("bad", **fields), bad)
    assert (await bad.refused()).type == type_
    await good.ended()
    assert len(good.ids) == 16


async def test_cancel_frees_the_slot(engine: VllmEngine) -> None:
    """The request is dropped by vLLM, and others go on."""
    recorder = Recorder()
    engine.submit(job("endless", max_tokens=1500, ignore_eos=True), recorder)
    await recorder.has_ids(2)
    engine.cancel("endless:1")
    assert (await recorder.ended()).reason is FinishReason.CANCELLED
    await run(engine, job("next"))
    assert engine.stats().running == 0
    assert engine._parts.llm.get_num_unfinished_requests() == 0


async def test_the_local_engine_says_the_same(engine: VllmEngine) -> None:
    """Greedy answers are equal token by token, so that either can take the other's over."""
    from worker.engine.local.engine import LocalEngine  # noqa: PLC0415

    local = LocalEngine(EngineOptions(MODEL, Path("/tmp/none"), quantize="none"))
    await local.load(lambda _step, _done: None)
    try:
        for number, prompt in enumerate(PROMPTS):
            ours, theirs = Recorder(), Recorder()
            local.submit(job(f"local{number}", prompt=prompt), ours)
            engine.submit(job(f"vllm{number}", prompt=prompt), theirs)
            await ours.ended()
            await theirs.ended()
            assert theirs.ids == ours.ids
            assert theirs.text == ours.text
    finally:
        await local.close()


async def test_a_dead_vllm_fails_the_engine(engine: VllmEngine) -> None:
    """Whoever waits hears of it, and nothing is delivered any more. It comes last: it is true."""
    late: list[Output] = []
    engine.submit(job("lost", max_tokens=1500, ignore_eos=True), late.append)
    async with within(60):
        for process in engine._parts.llm.engine_core.resources.engine_manager.processes:
            os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(EngineFailed):
            await engine.wait_failed()
    assert not any(isinstance(output, Finished) for output in late)
