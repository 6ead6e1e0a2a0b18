"""The remote engine: jobs run on an OpenAI-compatible server."""
