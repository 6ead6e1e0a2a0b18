"""How long the fuzz tests take: few examples, always the same, or ``FUZZ_EXAMPLES`` new ones."""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""Examples per test, 0 for a quick run."""


def profile(quick: int) -> settings:
    """Return hypothesis' settings for a test that has this many examples in a quick run."""
    return settings(
        max_examples=EXAMPLES or quick,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
