"""How much memory the KV cache gets on the device."""

import os

import torch

from common.errors import StartupFailed
from worker.engine.options import EngineOptions
from worker.kv.pool import KvShape
from worker.model.loading import LoadedModel

# On a machine that also does other things. Beyond it a longer memory of prompts is worth less
# than what the system does with the space.
_CPU_SHARE, _CPU_MOST = 0.25, 2 * 1024**3
# The rest is for activations and the allocator's fragments.
_GPU_SHARE = 0.85


def num_blocks(shape: KvShape, model: LoadedModel, options: EngineOptions) -> int:
    """Return how many blocks the device gets; raises ``StartupFailed`` when that is no use.

    No more than ``capacity`` sequences of the model's full context could fill.
    """
    budget = options.kv_bytes or _free_bytes(model.device)
    most = options.capacity * -(-model.context_len // shape.block_tokens)
    number = min(budget // shape.block_bytes, most)
    least = -(-options.step_tokens // shape.block_tokens)
    if number < min(least, most):
        raise StartupFailed(
            f"The KV cache would have {number * shape.block_tokens} tokens in {budget} bytes; "
            f"give it more with kv_bytes ({shape.token_bytes} bytes per token)."
        )
    return int(number)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * _GPU_SHARE)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(int(free * _CPU_SHARE), _CPU_MOST)
