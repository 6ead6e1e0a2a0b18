"""From a batch of logits to the next tokens, each sequence by its own settings."""

from worker.engine.local.sampling.logprobs import RawLogprobs
from worker.engine.local.sampling.sampler import Sampled, Sampler
from worker.engine.local.sampling.state import SamplerState

__all__ = ["RawLogprobs", "Sampled", "Sampler", "SamplerState"]
