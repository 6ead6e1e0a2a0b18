"""Dialects: pure functions from events to frames, one module per door. No I/O."""
