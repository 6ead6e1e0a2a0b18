"""The base URL of an OpenAI-compatible API, as a user gives it. Pure."""

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from common.errors import StartupFailed

_EXAMPLE = "http://127.0.0.1:8000/v1"


@dataclass(frozen=True, slots=True)
class BaseUrl:
    """``url`` is what comes before ``/chat/completions``; ``host`` is what messages say of it."""

    url: str
    host: str
    is_loopback: bool


def parse_base_url(text: str) -> BaseUrl:
    """Return the base URL; raises ``StartupFailed``.

    One without a path gets ``/v1`` (``http://127.0.0.1:8000``), any other is taken as it stands
    (``https://openrouter.ai/api/v1``).
    """
    if not text:
        raise StartupFailed(f"--engine remote needs --upstream URL, such as {_EXAMPLE}.")
    wrong = StartupFailed(
        f"--upstream must be a URL like {_EXAMPLE}, without a user, a query or a fragment; "
        "the key belongs into HEADRACE_UPSTREAM_KEY."
    )
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise wrong from None
    has_extras = bool(parts.query or parts.fragment) or "@" in parts.netloc
    if parts.scheme not in ("http", "https") or not host or has_extras:
        raise wrong
    path = parts.path.rstrip("/") or "/v1"
    return BaseUrl(f"{parts.scheme}://{parts.netloc}{path}", parts.netloc, _is_loopback(host))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
