"""The whole stack beside ``vllm serve``, measured by vLLM's own client."""
