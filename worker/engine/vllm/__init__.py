"""The vLLM engine: vLLM in this process."""
