"""Fixtures of the engine tests."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The engines are asyncio code."""
    return "asyncio"
