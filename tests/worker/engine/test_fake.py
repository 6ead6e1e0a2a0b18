"""The fake engine keeps the contract of every engine."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from common.emitted import Emitted, emitted_choices
from common.errors import EngineFailed
from common.jobs import JobSpec, Message
from tests.worker.engine.recorder import CANCELLED, EOS, FRESH, LENGTH, STOP, Recorder
from worker.engine.book import EOS_ID
from worker.engine.fake import FakeEngine
from worker.engine.protocol import Delta, Output, Request
from worker.pending import Pending

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    """Two slots, as fast as it can."""
    engine = FakeEngine("fake", tokens_per_s=0, capacity=2, context_len=2048)
    await engine.load(lambda _what, _done: None)
    yield engine
    await engine.close()


def _make_spec(prompt: str = "hello", max_tokens: int = 64, stop: tuple[str, ...] = ()) -> JobSpec:
    return JobSpec(model="fake", max_tokens=max_tokens, prompt=prompt, stop=stop)


def _submit(
    engine: FakeEngine, spec: JobSpec, request_id: str = "j:1", emitted: Emitted = FRESH
) -> Recorder:
    recorder = Recorder()
    engine.submit(Request(request_id, spec, (emitted,)), recorder)
    return recorder


async def test_an_answer_is_prefilled_decoded_and_ended_by_length(engine: FakeEngine) -> None:
    """Every token is delivered once, and the text is what the IDs decode to."""
    answer = _submit(engine, _make_spec(max_tokens=300))
    assert await answer.ended() == LENGTH
    assert answer.prefilled.prompt_tokens == len("hello")
    assert len(answer.ids) == 300
    assert bytes(answer.ids).decode(errors="ignore") == answer.text


async def test_the_answer_depends_on_the_prompt_alone(engine: FakeEngine) -> None:
    """The same prompt gives the same answer beside another one."""
    first = _submit(engine, _make_spec("one"), "j:1")
    second = _submit(engine, _make_spec("two"), "j:2")
    again = _submit(engine, _make_spec("one"), "j:3")
    for answer in (first, second, again):
        await answer.ended()
    assert first.ids == again.ids
    assert first.ids != second.ids


async def test_half_characters_occur_and_are_held_back(engine: FakeEngine) -> None:
    """Some tokens have no text, and no text has half a character."""
    answer = _submit(engine, _make_spec(max_tokens=1000))
    await answer.ended()
    assert len(answer.text) < len(answer.ids)
    assert "\ufffd" not in answer.text


async def test_a_marker_ends_the_sequence(engine: FakeEngine) -> None:
    """``[eos=N]`` in the prompt gives N tokens and the end of sequence."""
    answer = _submit(engine, _make_spec("hello [eos=7]"))
    assert await answer.ended() == EOS
    assert len(answer.ids) == 8
    assert answer.ids[-1] == EOS_ID


async def test_messages_are_a_prompt(engine: FakeEngine) -> None:
    """A conversation is answered like text."""
    spec = JobSpec(model="fake", max_tokens=9, messages=(Message("user", "hello"),))
    answer = _submit(engine, spec)
    assert await answer.ended() == LENGTH


async def test_a_stop_string_cuts_the_text(engine: FakeEngine) -> None:
    """The text ends before the stop string."""
    whole = _submit(engine, _make_spec(max_tokens=100))
    await whole.ended()
    stop = whole.text[20:24]
    cut = _submit(engine, _make_spec(max_tokens=100, stop=(stop,)), "j:2")
    assert await cut.ended() == STOP
    assert cut.text == whole.text[: whole.text.index(stop)]


async def test_resumed_at_every_cut_it_says_the_rest(engine: FakeEngine) -> None:
    """What was logged and what a second attempt adds are the whole answer."""
    spec = _make_spec("resume [eos=40]", stop=("  ",))
    whole = _submit(engine, spec)
    await whole.ended()
    for cut in range(len(whole.ids) + 1):
        part = Recorder()
        for delta in _deltas(whole)[:cut]:
            part(delta)
        rest = _submit(engine, spec, f"j:{cut}", Emitted(part.ids, part.text))
        assert await rest.ended() == EOS
        assert part.ids + rest.ids == whole.ids
        assert part.text + rest.text == whole.text


def _answers(recorder: Recorder, n: int) -> tuple[Emitted, ...]:
    """Return what was said, answer by answer, as a log of it would say."""
    pending = Pending((FRESH,) * n)
    for output in recorder.outputs:
        if isinstance(output, Delta):
            pending.take(output)
    return emitted_choices(pending.drain(), n)


async def test_several_answers_differ_and_end_together(engine: FakeEngine) -> None:
    """The first is the one that a single request gets; each ends a token later than the last."""
    spec = _make_spec("hello [eos=7]")
    single = _submit(engine, spec)
    several = Recorder()
    three = msgspec.structs.replace(spec, n=3)
    engine.submit(Request("j:2", three, (FRESH,) * 3), several)
    end = await several.ended()
    await single.ended()
    answers = _answers(several, 3)
    assert answers[0] == Emitted(single.ids, single.text)
    assert [len(answer.ids) for answer in answers] == [8, 9, 10]
    assert len({answer.text for answer in answers}) == 3
    assert [choice.choice for choice in end.choices if choice.is_eos] == [0, 1, 2]


async def test_several_answers_resumed_at_every_cut_say_the_rest(engine: FakeEngine) -> None:
    """Also where some of them had ended, and in the middle of the prompt."""
    spec = _make_spec("resume [eos=5]", stop=("  ",))
    spec = msgspec.structs.replace(spec, n=2, echo=True)
    whole = Recorder()
    engine.submit(Request("j:1", spec, (FRESH, FRESH)), whole)
    end = await whole.ended()
    for cut in range(len(_deltas(whole)) + 1):
        rest, part = Recorder(), Recorder()
        for delta in _deltas(whole)[:cut]:
            part(delta)
        engine.submit(Request(f"j:{cut}", spec, _answers(part, 2)), rest)
        assert await rest.ended() == end
        for output in rest.outputs[1:-1]:
            part(output)
        assert _answers(part, 2) == _answers(whole, 2)


async def test_the_prompt_is_echoed_before_the_answer(engine: FakeEngine) -> None:
    """Once, and apart from the answer's own text."""
    answer = _submit(engine, msgspec.structs.replace(_make_spec("hello"), echo=True))
    await answer.ended()
    assert _deltas(answer)[0] == Delta((), "hello", echo=True)
    assert [answer.echo for answer in _answers(answer, 1)] == ["hello"]


async def test_every_token_has_its_logprobs(engine: FakeEngine) -> None:
    """As many alternatives as were asked for, the chosen token among them."""
    answer = _submit(engine, msgspec.structs.replace(_make_spec("hello [eos=9]"), logprobs=2))
    await answer.ended()
    deltas = [output for output in _deltas(answer) if isinstance(output, Delta)]
    entries = [entry for delta in deltas for entry in delta.logprobs]
    assert tuple(entry.id for entry in entries) == answer.ids
    assert all(len(entry.top) == 2 and entry.top[0].id == entry.id for entry in entries)


async def test_min_tokens_and_ignored_ends_make_it_longer(engine: FakeEngine) -> None:
    """The end of sequence comes later, or is a token like any other; a stop token ends it."""
    spec = _make_spec("hello [eos=3]", max_tokens=20)
    later = _submit(engine, msgspec.structs.replace(spec, min_tokens=10), "j:1")
    assert (await later.ended(), len(later.ids)) == (EOS, 11)
    on = _submit(engine, msgspec.structs.replace(spec, ignore_eos=True), "j:2")
    assert (await on.ended(), on.ids[3]) == (LENGTH, EOS_ID)
    stop_ids = (on.ids[10],)
    early = msgspec.structs.replace(spec, ignore_eos=True, stop_token_ids=stop_ids)
    stopped = _submit(engine, early, "j:3")
    assert await stopped.ended() == STOP
    assert stopped.ids == on.ids[: on.ids.index(stop_ids[0]) + 1]


def _deltas(recorder: Recorder) -> list[Output]:
    return recorder.outputs[1:-1]


@pytest.mark.parametrize(
    ("spec", "emitted", "type_"),
    [
        (_make_spec(""), Emitted(), "prompt-empty"),
        (_make_spec("x" * 3000), Emitted(), "prompt-too-long"),
        (_make_spec(max_tokens=3000), Emitted(), "prompt-too-long"),
        (_make_spec(), Emitted((104, 105), "ho"), "takeover-mismatch"),
    ],
)
async def test_what_cannot_be_done_is_refused(
    engine: FakeEngine, spec: JobSpec, emitted: Emitted, type_: str
) -> None:
    """A bad request gets its refusal, a good one beside it its answer."""
    good = _submit(engine, _make_spec(), "j:good")
    bad = _submit(engine, spec, "j:bad", emitted)
    assert (await bad.refused()).type == type_
    assert await good.ended() == LENGTH


async def test_requests_past_the_capacity_wait_in_order(engine: FakeEngine) -> None:
    """No more than the capacity run, the others follow in order of arrival."""
    answers = [_submit(engine, _make_spec(max_tokens=5), f"j:{n}") for n in range(6)]
    assert engine.stats().waiting == 6
    await answers[0].has_ids(1)
    assert (engine.stats().running, engine.stats().waiting) == (2, 4)
    await answers[3].ended()
    assert [answer.is_ended for answer in answers] == [True] * 4 + [False] * 2
    await answers[5].ended()
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)
    assert engine.stats().tokens_per_s > 0


async def test_cancel_ends_running_and_waiting_requests(engine: FakeEngine) -> None:
    """A cancelled request makes no further token and frees its slot."""
    answers = [_submit(engine, _make_spec(max_tokens=1900), f"j:{n}") for n in range(3)]
    await answers[0].has_ids(3)
    num_ids = len(answers[0].ids)
    for request_id in ("j:0", "j:2", "j:unknown", "j:0"):
        engine.cancel(request_id)
    assert (engine.stats().running, engine.stats().waiting) == (1, 0)
    assert await answers[0].ended() == CANCELLED
    assert await answers[2].ended() == CANCELLED
    assert (len(answers[0].ids), answers[2].outputs) == (num_ids, [CANCELLED])
    assert await answers[1].ended() == LENGTH


async def test_tokens_come_at_the_pace_asked_for() -> None:
    """Ten tokens at 100 a second take at least the nine intervals between them."""
    engine = FakeEngine("fake", tokens_per_s=100, capacity=1)
    await engine.load(lambda _what, _done: None)
    loop = asyncio.get_running_loop()
    answer = _submit(engine, _make_spec(max_tokens=10))
    await answer.has_ids(1)
    started = loop.time()
    await answer.ended()
    assert loop.time() - started > 9 * 0.01 - 0.02
    await engine.close()


async def test_a_dead_pacing_task_is_a_failed_engine(engine: FakeEngine) -> None:
    """Whoever waits for a failure gets the cause."""

    def broken(_output: Output) -> None:
        raise ValueError("broken sink")

    engine.submit(Request("j:1", _make_spec()), broken)
    with pytest.raises(EngineFailed) as caught:
        async with asyncio.timeout(10):
            await engine.wait_failed()
    assert isinstance(caught.value.__cause__, ValueError)


async def test_after_close_nothing_is_delivered() -> None:
    """Running requests get no further output."""
    engine = FakeEngine("fake", tokens_per_s=0, capacity=1)
    await engine.load(lambda _what, _done: None)
    answer = _submit(engine, _make_spec(max_tokens=100_000))
    await answer.has_ids(1)
    await engine.close()
    outputs = list(answer.outputs)
    for _ in range(10):
        await asyncio.sleep(0)
    assert answer.outputs == outputs
