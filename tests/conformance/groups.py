"""Which tests of the suite apply to a server that only reads, and why the others do not.

A test applies where the real door's answer to GET, HEAD or OPTIONS decides it. What only the
answers to PUT, POST and DELETE decide would test the adapter, whether it passes or not.
"""

from dataclasses import dataclass

WRITES = "answers to PUT, POST, DELETE"
BYTES = "text and bytes as SSE: our streams are JSON"
PRODUCERS = "appending by clients"
EXPIRY = "the suite's own TTL: a job's retention is a setting of the gateway"


@dataclass(frozen=True)
class Group:
    """A group of the suite. ``others`` are parts of the names of those tests that do not apply."""

    reason: str = ""  # why some do not apply, or all
    others: tuple[str, ...] = ()

    def applies(self, name: str) -> bool:
        """Tell whether this test of the group applies."""
        return not any(part in name for part in self.others)


ALL = ("",)

GROUPS = {
    "Basic Stream Operations": Group(WRITES, ("create a stream", "idempotent", "different config")),
    "Append Operations": Group(PRODUCERS, ("seq",)),
    "Read Operations": Group(),
    "Long-Poll Operations": Group(),
    "HTTP Protocol": Group(WRITES, ("PUT", "POST", "mismatch", "non-existent", "seq", "ordering")),
    "Browser Security Headers": Group(WRITES, ("PUT", "POST")),
    "TTL and Expiry Validation": Group(EXPIRY, ALL),
    "Case-Insensitivity": Group(WRITES, ("content-type",)),
    "Content-Type Validation": Group(WRITES, ("append",)),
    "HEAD Metadata": Group(),
    "Offset Validation and Resumability": Group(),
    "Protocol Edge Cases": Group(
        WRITES,
        ("empty POST", "seq ordering", "Location", "missing Content-Type", "without Content"),
    ),
    "Long-Poll Edge Cases": Group(),
    "TTL and Expiry Edge Cases": Group(EXPIRY, ALL),
    "HEAD Metadata Edge Cases": Group(EXPIRY, ALL),
    "TTL Expiration Behavior": Group(EXPIRY, ALL),
    "Caching and ETag": Group(),
    "Chunking and Large Payloads": Group(WRITES, ("large payload",)),
    "Read-Your-Writes Consistency": Group(),
    "SSE Mode": Group(
        BYTES,
        (
            "base64",
            "binary",
            "Stream-SSE-Data-Encoding header for text",
            "Stream-SSE-Data-Encoding header for application",
            "newlines in text/plain",
            "CRLF injection",
        ),
    ),
    "JSON Mode": Group(WRITES, ("reject",)),
    "Property-Based Tests (fast-check)": Group(
        PRODUCERS, ("Sequence Ordering", "with sequence numbers", "incrementing seq")
    ),
    "Idempotent Producer Operations": Group(PRODUCERS, ALL),
    "Stream Closure": Group(
        WRITES,
        (
            "create-closed-stream: ",
            "create-closed-returns",
            "close-stream-empty-post",
            "close-returns-offset",
            "close-idempotent",
            "close-only-ignores",
            "-409",
            "close-nonexistent",
            "Idempotent Producers",
            "producer-state",
            "dedup",
            "empty-post",
        ),
    ),
    "Fork - Creation": Group("forks", ALL),
    "Fork - Reading": Group("forks", ALL),
    "Fork - Appending": Group("forks", ALL),
    "Fork - Recursive": Group("forks", ALL),
    "Fork - Live Modes": Group("forks", ALL),
    "Fork - Deletion and Lifecycle": Group("forks", ALL),
    "Fork - TTL and Expiry": Group("forks", ALL),
    "Fork - JSON Mode": Group("forks", ALL),
    "Fork - Edge Cases": Group("forks", ALL),
    "Reserved subscription APIs": Group("subscriptions, which its server may offer", ALL),
}
