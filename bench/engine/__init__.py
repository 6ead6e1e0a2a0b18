"""The engine beside other engines: one model, the same prompts, one machine, in turns."""
