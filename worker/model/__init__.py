"""Which model a worker serves, and how it gets into memory."""
