"""The model of a benchmark: its files, and its prompts in token IDs."""

from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from tokenizers import Tokenizer

from bench.engine.contenders.line import Ask, Plan
from bench.prompts import sheet
from common.settings import DEFAULT_MODEL, load
from worker.model.cache import cached_copy
from worker.model.checkpoint import find_checkpoint
from worker.model.gguf import convert_gguf


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A checkpoint as all contenders find it."""

    name: str
    directory: Path  # with config.json and safetensors
    gguf: Path | None
    cache_dir: Path
    tokenizer: Tokenizer

    def plan(self, dtype: str, capacity: int, threads: int, max_len: int) -> Plan:
        """Return what a contender is told; each takes what it needs."""
        return Plan(
            model=self.name,
            directory=str(self.directory),
            gguf=str(self.gguf or ""),
            cache_dir=str(self.cache_dir),
            dtype=dtype,
            capacity=capacity,
            threads=threads,
            max_len=max_len,
        )

    def ask(self, number: int, count: int, max_tokens: int, concurrency: int = 0) -> Ask:
        """Return the prompts of a sheet, as text and as IDs."""
        return self.ask_for(sheet(number, count), max_tokens, concurrency)

    def ask_for(self, texts: list[str], max_tokens: int, concurrency: int = 0) -> Ask:
        """Return an ask for these prompts; without ``concurrency`` all at once."""
        ids = [self.tokenizer.encode(text).ids for text in texts]
        return Ask(texts, ids, concurrency or len(texts), max_tokens)


def find_model(model: str = DEFAULT_MODEL) -> BenchModel:
    """Return the model, converted by the worker's own code if it was never used here."""
    cache_dir = load({}).cache_dir
    checkpoint = find_checkpoint(model)
    directory = checkpoint.directory
    if checkpoint.gguf is not None:
        # The very copy that a worker makes and reads, so the same name for the converter.
        converter = f"transformers {version('transformers')}"
        convert = partial(convert_gguf, progress=lambda *_: None)
        directory = cached_copy(checkpoint.gguf, cache_dir / "models", converter, convert)
    assert directory is not None, "models of the hub are not measured here"
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return BenchModel(model, directory, checkpoint.gguf, cache_dir, tokenizer)
