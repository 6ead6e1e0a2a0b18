"""Steps of the engine, with a small random Llama: what fails, fails alone."""

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Many
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from common.jobs import Sampling
from tests.worker.engine.local.simulated import make_sequence
from tests.worker.model.fused.models import VOCAB_LEN, expect, make_model, make_pool, random_ids
from worker.engine.local.core import EngineCore
from worker.engine.local.made import Made, PromptLogprobs, Token
from worker.engine.local.scheduler import Scheduler
from worker.engine.local.sequence import Sequence
from worker.engine.protocol import Prefilled, Refused
from worker.kv.cache import KvCache
from worker.model.batch import Batch, Network
from worker.model.generic import GenericNetwork

torch.set_num_threads(1)  # of small tensors, several threads only wait for each other
BLOCK_TOKENS = 4
BAD = VOCAB_LEN - 1  # a token that no prompt has by chance
MODEL = make_model("llama")
SERVED = make_model("llama")  # serving changes how it computes attention
PROMPTS = [[id_ % BAD for id_ in random_ids(length, length)] for length in (1, 3, 9, 14, 22)]


class Harness:
    """An engine's core and everything that its steps made, by sequence."""

    def __init__(
        self, network: Network, cache: KvCache, *, capacity: int = 8, step_tokens: int = 64
    ) -> None:
        self.cache = cache
        self.scheduler = Scheduler(cache, capacity, step_tokens)
        self.core = EngineCore(network, cache, self.scheduler, torch.device("cpu"))
        self.made: list[Made] = []

    def run(self, *sequences: Sequence) -> None:
        """Run sequences to their ends; afterwards no block is held."""
        for sequence in sequences:
            self.scheduler.add(sequence)
        while not self.scheduler.is_idle:
            self.made += self.core.step()
        self.scheduler.tidy()
        assert self.cache.manager.num_used == 0
        self.cache.manager.check()

    def ids(self, sequence: Sequence) -> list[int]:
        """Return the tokens that were made of a sequence."""
        return [one.id for one in self.of(sequence) if isinstance(one, Token)]

    def of(self, sequence: Sequence) -> list[Any]:
        """Return all that was made of a sequence."""
        return [one for sequence_id, one in self.made if sequence_id == sequence.id]


def _make_harness(model: Any = SERVED, num_blocks: int = 64, **options: Any) -> Harness:
    pool = make_pool(model, BLOCK_TOKENS)
    network = GenericNetwork(model.network)
    with torch.inference_mode():
        network.measure(model.context_len)
    network.attach(pool)
    return Harness(network, KvCache(num_blocks, BLOCK_TOKENS, pool), **options)


def _sequence(order: int, ids: Many[int], max_tokens: int = 6, **options: Any) -> Sequence:
    return make_sequence(order, ids, max_tokens, block_tokens=BLOCK_TOKENS, **options)


def _greedy(ids: Many[int], max_tokens: int = 6) -> list[int]:
    """Return what the model says by itself."""
    known = list(ids)
    for _ in range(max_tokens):
        known.append(int(expect(MODEL, known)[-1].argmax()))
    return known[len(ids) :]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Tracebacks with tensors take seconds to print."""
    with capture_logs():
        yield


@pytest.fixture(scope="module")
def answers() -> list[list[int]]:
    """The model's own answers to the prompts."""
    return [_greedy(ids) for ids in PROMPTS]


@pytest.mark.parametrize("num_blocks", [7, 64])
@pytest.mark.parametrize("step_tokens", [3, 64])
def test_every_answer_is_the_models(
    answers: list[list[int]], num_blocks: int, step_tokens: int
) -> None:
    """In chunks, beside others, or sent away and called back."""
    harness = _make_harness(num_blocks=num_blocks, step_tokens=step_tokens)
    sequences = [_sequence(order, ids) for order, ids in enumerate(PROMPTS)]
    harness.run(*sequences)
    assert [harness.ids(sequence) for sequence in sequences] == answers
    for sequence in sequences:
        (prefilled,) = [one for one in harness.of(sequence) if isinstance(one, Prefilled)]
        assert prefilled.prompt_tokens == sequence.prompt_len
        assert prefilled.cached_tokens == 0
        assert prefilled.prefill_s > 0


def test_an_end_token_ends_the_answer(answers: list[list[int]]) -> None:
    """It is the answer's last token."""
    end_id = answers[2][3]
    harness = _make_harness()
    sequence = _sequence(0, PROMPTS[2], end_ids=frozenset({end_id}))
    harness.run(sequence)
    assert harness.ids(sequence) == answers[2][: answers[2].index(end_id) + 1]
    assert sequence.is_gone


class Breaking:
    """A network that refuses batches with a certain token."""

    def __init__(self, network: Network, error: Exception) -> None:
        self._network = network
        self._error = error

    def forward(self, batch: Batch) -> Tensor:
        """Write half of the batch's tensors, and fail."""
        logits = self._network.forward(batch)
        if BAD in batch.ids:
            raise self._error
        return logits


@pytest.mark.parametrize(
    "error",
    [RuntimeError("bad\nluck"), MemoryError(), torch.OutOfMemoryError("full"), IndexError("out")],
    ids=lambda error: type(error).__name__,
)
def test_who_breaks_the_forward_pass_is_refused_alone(
    answers: list[list[int]], error: Exception
) -> None:
    """All others of the batch get their answers, and nobody finds the blocks of the broken one."""
    harness = _make_harness(step_tokens=16)
    harness.core._network = Breaking(harness.core._network, error)
    bad = _sequence(9, [*PROMPTS[4], BAD, 5])
    good = [_sequence(order, ids) for order, ids in enumerate(PROMPTS)]
    harness.run(*good[:3], bad, *good[3:])
    assert [harness.ids(sequence) for sequence in good] == answers
    (refused,) = harness.of(bad)
    assert refused.type == "engine-error"
    assert refused.detail.partition(": ")[2] in {str(error).partition("\n")[0], "MemoryError"}
    again = _sequence(10, [*PROMPTS[4], BAD, 5, 6])
    harness.run(again)
    assert again.cached_len is not None
    assert again.cached_len <= len(PROMPTS[4])


@pytest.mark.parametrize("step_tokens", [5, 64])
def test_who_makes_nan_is_refused_alone(answers: list[list[int]], step_tokens: int) -> None:
    """NaN in its keys and values reaches nobody, neither beside it nor in its blocks afterwards."""
    model = make_model("llama")
    model.network.model.embed_tokens.weight.data[BAD] = torch.nan
    harness = _make_harness(model, step_tokens=step_tokens)
    bad = [_sequence(10 + n, [BAD] * length) for n, length in enumerate((1, 5, 30))]
    good = [_sequence(order, ids) for order, ids in enumerate(PROMPTS)]
    harness.run(bad[0], *good[:2], bad[1], bad[2], *good[2:])
    assert [harness.ids(sequence) for sequence in good] == answers
    for sequence in bad:
        *_, refused = harness.of(sequence)
        assert isinstance(refused, Refused)
        assert refused.type == "non-finite-logits"
        assert not harness.ids(sequence)
    later = [_sequence(20 + order, [7, *ids]) for order, ids in enumerate(PROMPTS)]
    harness.run(*later)
    assert [harness.ids(one) for one in later] == [_greedy([7, *ids]) for ids in PROMPTS]
    again = _sequence(30, [BAD] * 30)
    harness.run(again)
    assert again.cached_len == 0


@pytest.mark.parametrize("error", [torch.AcceleratorError("the device is gone"), TypeError("bug")])
def test_a_lost_device_and_a_bug_end_the_engine(error: Exception) -> None:
    """Nobody is refused for what is not their fault."""
    harness = _make_harness()
    harness.core._network = Breaking(harness.core._network, error)
    harness.scheduler.add(_sequence(0, PROMPTS[2]))
    harness.scheduler.add(_sequence(1, [BAD]))
    with pytest.raises(type(error)):
        harness.core.step()


def _scored(harness: Harness, sequence: Sequence) -> list[Token]:
    parts = [one.tokens for one in harness.of(sequence) if isinstance(one, PromptLogprobs)]
    return [token for tokens in parts for token in tokens]


@pytest.mark.parametrize(("step_tokens", "num_top"), [(5, 0), (64, 2)])
def test_prompt_logprobs_are_the_models(step_tokens: int, num_top: int) -> None:
    """Every token of the prompt but the first has one, in order, whatever is cached of it."""
    harness = _make_harness(step_tokens=step_tokens)
    ids = PROMPTS[4]
    harness.run(_sequence(0, ids, 1))
    scored = [_sequence(order, ids, 2, num_logprobs=num_top) for order in (1, 2)]
    for sequence in scored:
        sequence.wants_prompt_logprobs = True
    harness.run(*scored, _sequence(3, PROMPTS[3]))
    expected = expect(MODEL, ids).log_softmax(dim=-1)
    for sequence in scored:
        tokens = _scored(harness, sequence)
        assert [token.id for token in tokens] == ids[1:]
        for place, token in enumerate(tokens):
            assert token.logprobs is not None
            assert token.logprobs.logprob == pytest.approx(
                expected[place, token.id].item(), abs=1e-4
            )
            assert token.logprobs.top_ids == expected[place].topk(num_top).indices.tolist()
        assert all(token.logprobs for token in harness.of(sequence) if isinstance(token, Token))


def test_prompt_logprobs_are_made_once() -> None:
    """Also where the sequence is sent away in the middle of its prompt."""
    harness = _make_harness(num_blocks=7, capacity=2, step_tokens=3)
    harness.scheduler.add(_sequence(0, PROMPTS[2][:8], 12, rank=0))
    for _ in range(3):
        harness.made += harness.core.step()
    late = _sequence(1, PROMPTS[3], 2, num_logprobs=0)
    late.wants_prompt_logprobs = True
    harness.run(late)
    assert harness.scheduler.num_preemptions > 0
    assert [token.id for token in _scored(harness, late)] == PROMPTS[3][1:]


def test_answers_to_one_prompt_share_its_prefill() -> None:
    """The followers compute one token of it; each has its own random numbers."""
    harness = _make_harness()
    leader = _sequence(0, PROMPTS[4], sampling=Sampling(seed=3))
    followers = [
        _sequence(order, PROMPTS[4], sampling=Sampling(seed=3), leader=leader) for order in (1, 2)
    ]
    for order, sequence in enumerate(followers):
        sequence.sampler.choice = order + 1
    harness.run(leader, *followers)
    assert [sequence.cached_len for sequence in (leader, *followers)] == [0, 21, 21]
    answers = {tuple(harness.ids(sequence)) for sequence in (leader, *followers)}
    assert len(answers) == 3


def test_time_and_tokens_are_accounted_for() -> None:
    """Prefilled tokens are counted once, and nobody's share is more than the whole."""
    harness = _make_harness(step_tokens=16)
    sequences = [_sequence(order, ids) for order, ids in enumerate(PROMPTS[1:])]
    harness.run(*sequences)
    assert 0 < harness.core.prefill_s <= harness.core.model_s
    assert harness.core.prefill_tokens <= sum(map(len, PROMPTS))
    assert sum(sequence.prefill_s for sequence in sequences) <= harness.core.model_s


def test_unharmed_neighbours_of_many_failures() -> None:
    """However many break, those between them get on."""
    harness = _make_harness()
    harness.core._network = Breaking(harness.core._network, RuntimeError("bad"))
    sequences = [_sequence(order, [order + 1, BAD][: 1 + order % 2]) for order in range(8)]
    harness.run(*sequences)
    assert _refused(harness, sequences) == [order % 2 == 1 for order in range(8)]


def _refused(harness: Harness, sequences: Iterable[Sequence]) -> list[bool]:
    return [isinstance(harness.of(sequence)[-1], Refused) for sequence in sequences]
