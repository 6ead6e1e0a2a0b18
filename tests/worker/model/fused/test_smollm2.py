"""The default model answers as transformers does."""

from pathlib import Path

import pytest
import torch

from common.errors import StartupFailed
from common.settings import DEFAULT_MODEL
from tests.worker.model.fused.models import KERNELS, Part, make_batch, make_pool
from worker.engine.options import EngineOptions
from worker.model.checkpoint import find_checkpoint
from worker.model.fused.llama import FusedLlama
from worker.model.fused.weights import supports
from worker.model.loading import load_model

_CACHE_DIR = Path.home() / ".cache" / "headrace"
_ANSWER_LEN = 32


def test_greedy_answers_are_those_of_transformers() -> None:
    """32 tokens after a prompt, one at a time, are those of ``generate``."""
    try:
        checkpoint = find_checkpoint(DEFAULT_MODEL)
    except StartupFailed:
        pytest.skip("the default model is not installed")
    options = EngineOptions(DEFAULT_MODEL, _CACHE_DIR, device="cpu", dtype="float32")
    model = load_model(checkpoint, options, lambda _what, _done: None)
    assert supports(model.network)
    prompt = model.tokenizer("A water wheel turns because")["input_ids"]
    expected = model.network.generate(
        torch.tensor([prompt]), max_new_tokens=_ANSWER_LEN, do_sample=False
    )[0].tolist()
    fused = FusedLlama(model, make_pool(model), "none", KERNELS)
    ids, seen_len = list(prompt), 0
    while len(ids) < len(expected):
        part = Part(ids, seen_len, len(ids), range(40))
        seen_len = len(ids)
        ids.append(int(fused.forward(make_batch([part]))[-1].argmax()))
    assert ids == expected
