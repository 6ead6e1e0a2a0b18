"""The engines: one protocol, several ways to turn a prompt into tokens."""
