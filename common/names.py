"""Identifiers: how they are made, and what a name from outside may look like."""

import hashlib
import hmac
import re
import secrets
import socket

MAX_NAME_LEN = 200

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]*")
_JOB_ID = re.compile(r"job_[0-9a-f]{32}")


def is_name(text: str) -> bool:
    """Tell whether ``text`` may name a model, a tenant or a prompt.

    Braces, spaces and control characters are out, so that no name can forge a key or a hash tag.
    """
    return len(text) <= MAX_NAME_LEN and _NAME.fullmatch(text) is not None


def is_job_id(text: str) -> bool:
    """Tell whether ``text`` has the shape of a job ID."""
    return _JOB_ID.fullmatch(text) is not None


def random_job_id() -> str:
    """Return a job ID that nobody can guess."""
    return f"job_{secrets.token_hex(16)}"


def idempotent_job_id(secret: bytes, tenant: str, idempotency_key: str) -> str:
    """Return the job ID of a tenant's ``Idempotency-Key``: a keyed hash, the same on any gateway.

    Without the secret nobody can compute another tenant's job IDs from its keys.
    """
    text = f"{len(tenant)}:{tenant}:{idempotency_key}".encode()
    return f"job_{hmac.new(secret, text, hashlib.sha256).hexdigest()[:32]}"


def worker_id() -> str:
    """Return a fresh worker ID. Each incarnation of a worker has its own."""
    host = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())[:40].strip("-") or "host"
    return f"{host}-{secrets.token_hex(4)}"
