"""The fast path of the Llama family on the CPU: the whole forward pass as one compiled function."""
