"""The commands, one module per kind. Each imports what it needs only when it runs."""
