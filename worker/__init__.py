"""The worker: claims jobs, runs the engine, keeps KV tensors, appends tokens. One per GPU."""
