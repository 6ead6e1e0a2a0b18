"""From a GGUF file to a directory that transformers loads in a second.

transformers reads GGUF itself, but takes a quarter of a minute for the smallest model.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from worker.engine.protocol import Progress


def convert_gguf(file: Path, directory: Path, progress: Progress) -> None:
    """Write the file's weights, unpacked to float32, and its tokeniser into the directory."""
    # The fractions are of the time it takes, measured.
    progress("converting", 0.0)
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    progress("converting", 0.25)
    network = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    progress("converting", 0.92)
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    progress("converting", 1.0)
