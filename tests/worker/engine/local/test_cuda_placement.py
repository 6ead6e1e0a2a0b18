"""Whole steps on a GPU that is not there: nothing is left on the host, and little is waited for."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from common.jobs import Sampling
from tests.support.pretended_gpu import GPU, Watch, pretended_gpu
from tests.worker.engine.local.simulated import VOCAB_LEN, make_sequence
from tests.worker.model import flash_kernel
from worker.engine.local.core import EngineCore
from worker.engine.local.made import Token
from worker.engine.local.scheduler import Scheduler
from worker.engine.local.sequence import Sequence
from worker.kv.cache import KvCache
from worker.kv.disk import DiskTier
from worker.kv.host import HostTier
from worker.kv.pool import KvPool, KvShape
from worker.kv.tiers import Tiers
from worker.model import flash
from worker.model.batch import Network
from worker.model.generic import GenericNetwork
from worker.model.graphs import GraphedNetwork
from worker.model.llama import MergedLlama
from worker.model.masks import Masks

BLOCK_TOKENS = flash.BLOCK_TOKENS
NUM_BLOCKS, CAPACITY, STEP_TOKENS = 10, 8, 300
SHAPE = KvShape(2, 2, 16, BLOCK_TOKENS, torch.bfloat16)
PENALTIES: dict[str, Any] = {
    "repetition_penalty": 1.3,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "logit_bias": {3: 1.0},
}
SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "whole": Sampling(temperature=0.7, top_p=1, min_p=0.1, seed=1),
    "nucleus": Sampling(temperature=0.7, top_p=0.9, seed=2),
    "narrow": Sampling(temperature=0.7, top_k=20, seed=3),
    "wide": Sampling(temperature=0.7, top_k=VOCAB_LEN - 1, seed=4, top_p=0.5),
    "penalised": Sampling(temperature=0, **PENALTIES),
    "all": Sampling(temperature=2, top_k=7, top_p=0.4, min_p=0.1, seed=5, **PENALTIES),
}


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """A pretended GPU with a kernel that refuses what the real one does."""
    monkeypatch.setattr(flash, "varlen_attn_out", flash_kernel.varlen_attn_out)
    monkeypatch.setattr(flash, "varlen_attn", flash_kernel.varlen_attn)
    with pretended_gpu(monkeypatch) as watch, torch.no_grad():
        yield watch


def _load(family: str) -> Any:
    """Make a model of transformers on the host and move it, as it is loaded."""
    sizes: dict[str, Any] = {"vocab_size": VOCAB_LEN + 24, "bos_token_id": 1, "eos_token_id": 2}
    if family == "gpt2":
        config: Any = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=1024, **sizes)
    else:
        config = LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            **sizes,
        )
    make = AutoModelForCausalLM.from_config
    with torch.device("cpu"):
        network: Any = make(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    for module in network.eval().modules():  # as ``to`` does, which needs more than fakes can do
        for named in (module._parameters, module._buffers):
            named.update({key: value.to(GPU) for key, value in named.items() if value is not None})
    return network


def _network(family: str, pool: KvPool) -> Network:
    """Return a network over the pool, with flash attention."""
    if family == "merged":
        return MergedLlama(_load("llama"), pool, flash.GroupedFlashAttention)
    generic = GenericNetwork(_load(family)).using(flash.FlashAttention)
    with patch.object(Masks, "_make", return_value=None):  # masks of fakes show nothing
        layers = generic.measure(256)
    assert {(shape.num_heads, shape.head_dim) for shape in layers} == {(2, 16)}
    generic.attach(pool)
    return generic


def _core(network: Network, pool: KvPool, tiers: Tiers | None = None) -> EngineCore:
    cache = KvCache(NUM_BLOCKS - 1, BLOCK_TOKENS, pool, tiers)
    return EngineCore(network, cache, Scheduler(cache, CAPACITY, STEP_TOKENS), GPU)


def _sequence(order: int, sampling: Sampling, length: int, *, asks: bool = False) -> Sequence:
    ids = np.arange(length) * 7 % VOCAB_LEN
    sequence = make_sequence(
        order,
        (ids + order).tolist(),
        sampling=sampling,
        num_logprobs=3 if asks else None,
        block_tokens=BLOCK_TOKENS,
    )
    sequence.wants_prompt_logprobs = asks
    return sequence


def _generate(core: EngineCore) -> tuple[list[int], list[Any]]:
    """Make steps until all is done; return how many took part in each, and what came of it."""
    sizes, made = [], []
    while not core.scheduler.is_idle:
        found = core.step()
        sizes.append(sum(isinstance(output, Token) for _, output in found))
        made += [output for _, output in found]
    return sizes, made


@pytest.mark.parametrize("family", ["merged", "llama", "gpt2"])
@pytest.mark.parametrize("has_graphs", [False, True])
@pytest.mark.usefixtures("watch")
def test_everything_is_on_the_device(family: str, has_graphs: bool) -> None:
    """Prefills, decodes and both; every way to choose a token, with logprobs and without."""
    pool = KvPool(SHAPE, NUM_BLOCKS, GPU)
    network = _network(family, pool)
    if has_graphs:
        network = graphed = GraphedNetwork(network, CAPACITY, 4, NUM_BLOCKS - 1)
        graphed.capture(GPU, BLOCK_TOKENS)
    core = _core(network, pool)
    for order, sampling in enumerate(SAMPLINGS.values()):
        length = 280 if not order else 20 + order
        core.scheduler.add(_sequence(order, sampling, length, asks=order % 2 == 0))
    sizes, made = _generate(core)
    assert max(sizes) == len(SAMPLINGS), "all of them decode together"
    assert sum(sizes) == 4 * len(SAMPLINGS)
    assert not [output for output in made if type(output).__name__ == "Refused"]
    if has_graphs:
        assert sum(graph.graph.num_replays for graph in graphed._graphs.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_a_decode_waits_for_the_device_once(watch: Watch, kind: str) -> None:
    """For the tokens; only a nucleus asks in between whether it was looked for far enough."""
    pool = KvPool(SHAPE, NUM_BLOCKS, GPU)
    core = _core(_network("merged", pool), pool)
    for order in range(2):
        core.scheduler.add(_sequence(order, SAMPLINGS[kind], 20))
    core.step()
    watch.waits.clear()
    core.step()
    assert watch.waits.count("nonzero") == (3 if kind == "nucleus" else 0)
    assert [wait for wait in watch.waits if wait not in ("nonzero", "_local_scalar_dense")] == []
    assert watch.waits.count("_local_scalar_dense") == 2, "one list of two tokens"


def test_blocks_go_to_the_host_and_back(watch: Watch, tmp_path: Any) -> None:
    """Into pinned memory, and nobody waits for them."""
    pool = KvPool(SHAPE, NUM_BLOCKS, GPU)
    watch.waits.clear()
    pool.copy(0, 1)
    data, wait = pool.read(1)
    assert (data.device.type, data.shape) == ("cpu", pool.blocks.shape[1:])
    pool.write(2, data)
    wait()
    assert watch.waits == []
    tiers = Tiers(HostTier(1 << 30), DiskTier(tmp_path, 0, SHAPE))
    core = _core(_network("merged", pool), pool, tiers)
    for order in range(4):  # more than there are blocks for
        core.scheduler.add(_sequence(10 * order, SAMPLINGS["greedy"], 600))
        _generate(core)
    assert tiers.host_bytes > 0, "something was evicted"
    core.scheduler.add(_sequence(0, SAMPLINGS["greedy"], 600))
    _generate(core)
    assert core.cache.hits.host == 2 * BLOCK_TOKENS
    tiers.close()


@pytest.mark.parametrize("family", ["merged", "llama"])
@pytest.mark.parametrize("name", ["starts", "lengths", "tables", "blocks", "rows", "ids"])
@pytest.mark.usefixtures("watch")
def test_a_tensor_on_the_host_is_noticed(
    family: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of a batch: or the tests above would say nothing."""
    pool = KvPool(SHAPE, NUM_BLOCKS, GPU)
    network = _network(family, pool)
    core = _core(network, pool)
    forward = network.forward

    def wrong(batch: Any) -> Any:
        values = {field: getattr(batch, field) for field in batch.__slots__}
        return forward(type(batch)(**{**values, name: values[name].cpu()}))

    monkeypatch.setattr(network, "forward", wrong)
    core.scheduler.add(_sequence(0, SAMPLINGS["greedy"], 20))
    with pytest.raises((AssertionError, RuntimeError), match=r"two devices|on CUDA|same device"):
        core.step()
