"""The local engine: our scheduler, KV cache and sampler around a transformers model."""
