"""What may be asked of the local engine, but for plain greedy answers."""

from pathlib import Path

import pytest

from common.jobs import Message, Sampling
from tests.worker.engine.local.engines import (
    PROMPTS,
    WILD,
    Reference,
    loaded,
    logged,
    make_spec,
    reference_of,
    submit,
)
from tests.worker.engine.recorder import FRESH
from worker.engine.local.engine import LocalEngine
from worker.engine.protocol import Delta

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("generic_path")]


async def test_resumed_at_every_cut_it_goes_on_the_same(engine: LocalEngine) -> None:
    """A second attempt makes the same tokens, with the same random numbers, and the rest."""
    spec = make_spec(sampling=WILD, stop=("zzz",))
    whole = submit(engine, spec, "j:whole")
    end = await whole.ended()
    for cut in range(len(whole.ids) + 1):
        emitted = logged(whole, cut)
        rest = submit(engine, spec, f"j:{cut}", emitted)
        assert await rest.ended() == end
        assert emitted.ids + rest.ids == whole.ids
        assert emitted.text + rest.text == whole.text


async def test_several_answers_are_those_that_each_gets_alone(engine: LocalEngine) -> None:
    """Each has its own random numbers, and one prefill serves all."""
    spec = make_spec(PROMPTS[1], sampling=WILD, n=3)
    together = submit(engine, spec, "j:all")
    end = await together.ended()
    answers = [together.of(choice) for choice in range(3)]
    assert len({answer.ids for answer in answers}) == 3
    assert [choice.finish_reason for choice in end.choices] == ["length"] * 3
    single = submit(engine, make_spec(PROMPTS[1], sampling=WILD), "j:single")
    await single.ended()
    assert single.ids == answers[0].ids
    for choice in range(3):
        emitted = [FRESH if n == choice else answer for n, answer in enumerate(answers)]
        alone = submit(engine, spec, f"j:{choice}", *emitted)
        assert await alone.ended() == end
        assert alone.of(choice) == answers[choice]
        assert alone.ids == answers[choice].ids


async def test_logprobs_are_the_models(engine: LocalEngine, reference: Reference) -> None:
    """Every token comes with its own, and with the most likely ones at its place."""
    answer = submit(engine, make_spec(logprobs=2))
    await answer.ended()
    prompt_ids = reference.encode(PROMPTS[0])
    expected = reference.logprobs([*prompt_ids, *answer.ids])[len(prompt_ids) - 1 :]
    assert [one.id for one in answer.logprobs] == list(answer.ids)
    for place, one in enumerate(answer.logprobs):
        assert one.logprob == pytest.approx(expected[place, one.id].item(), abs=1e-3)
        assert [other.id for other in one.top] == expected[place].topk(2).indices.tolist()
        assert one.top[0].id == one.id
        assert one.text == engine._parts.tokenizer.text_of(one.id)


@pytest.mark.parametrize("step_tokens", [4, 512])
async def test_echo_comes_first_with_its_logprobs(tiny_model: Path, step_tokens: int) -> None:
    """The prompt's text once, then the logprobs of all its tokens but the first."""
    reference = reference_of(tiny_model)
    async with loaded(tiny_model, step_tokens=step_tokens) as engine:
        spec = make_spec(PROMPTS[1], 3, echo=True, logprobs=0, n=2)
        answer = submit(engine, spec)
        await answer.ended()
    first, *others = [output for output in answer.outputs if isinstance(output, Delta)]
    assert (first.text, first.echo) == (PROMPTS[1], True)
    assert not any(delta.text for delta in others if delta.echo)
    prompt_ids = reference.encode(PROMPTS[1])
    echoed = [one for delta in others if delta.echo for one in delta.logprobs]
    expected = reference.logprobs(prompt_ids)
    assert [one.id for one in echoed] == prompt_ids[1:]
    assert [one.logprob for one in echoed] == pytest.approx(
        [expected[place, one.id].item() for place, one in enumerate(echoed)], abs=1e-3
    )
    assert answer.of(0).ids == answer.of(1).ids == reference.complete(PROMPTS[1], 3)


async def test_messages_go_through_the_chat_template(
    engine: LocalEngine, reference: Reference
) -> None:
    """The prompt is the template's text with the assistant's turn opened."""
    answer = submit(engine, make_spec(None, 12, messages=(Message("user", "the river?"),)))
    await answer.ended()
    assert answer.ids == reference.complete("<|user|>the river?<|end|><|assistant|>", 12)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0, frequency_penalty=2),
        Sampling(temperature=0, presence_penalty=2),
        Sampling(temperature=0, repetition_penalty=3),
    ],
)
async def test_penalties_change_the_answer(
    engine: LocalEngine, reference: Reference, sampling: Sampling
) -> None:
    """Each of them makes repetitions rarer."""
    plain = reference.complete(PROMPTS[3], 60)
    answer = submit(engine, make_spec(PROMPTS[3], 60, sampling=sampling))
    await answer.ended()
    assert len(set(answer.ids)) > len(set(plain))


async def test_a_bias_rules_tokens_out(engine: LocalEngine, reference: Reference) -> None:
    """What would have come does not come."""
    banned = reference.complete(PROMPTS[0], 24)[:3]
    bias = dict.fromkeys(banned, -100.0)
    answer = submit(engine, make_spec(sampling=Sampling(temperature=0, logit_bias=bias)))
    await answer.ended()
    assert not set(banned) & set(answer.ids)
