"""The HTTP client of an OpenAI-compatible server: it tells nobody its key, follows no redirect."""

import math
from collections.abc import AsyncGenerator

import httpx2
import msgspec

from common.errors import HeadraceError, StartupFailed
from worker.engine.remote.openai_stream import UpstreamFault, message_of
from worker.engine.remote.upstream_url import parse_base_url

CONNECT_S = 10.0
SILENCE_S = 600.0  # a busy server says nothing while a request waits for its turn

_ERROR_LEN = 65_536
_MODELS_LEN = 16 * 1024**2  # hosted services list hundreds of models at length
_TRY_LATER = frozenset({408, 425, 429})
_KEY_REFUSED = frozenset({401, 403})


class Unavailable(HeadraceError):
    """The upstream could not be reached, broke off, or asks to come back later."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class UpstreamModel(msgspec.Struct, frozen=True):
    """A model that the upstream offers; ``max_model_len`` is vLLM's and SGLang's."""

    id: str
    max_model_len: int | None = None


class _ModelList(msgspec.Struct):
    data: tuple[UpstreamModel, ...] | None = None


class Upstream:
    """One server. ``host`` is what messages may say of it."""

    def __init__(self, url: str, key: str = "") -> None:
        base = parse_base_url(url)
        self.host = base.host
        self._url = base.url
        self._key = key.strip()
        if not (self._key.isascii() and (not self._key or self._key.isprintable())):
            raise StartupFailed("HEADRACE_UPSTREAM_KEY has characters that no key can have.")
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(SILENCE_S, connect=CONNECT_S, pool=None),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=32),
            follow_redirects=False,
            # A proxy from the environment is for the world outside.
            trust_env=not base.is_loopback,
        )

    def redacted(self, text: str) -> str:
        """Return the text without the key, which an upstream may repeat in its errors."""
        return text.replace(self._key, "…") if self._key else text

    async def models(self) -> tuple[UpstreamModel, ...]:
        """Return the models on offer; raises ``Unavailable``, or ``StartupFailed`` for good."""
        try:
            async with self._http.stream(
                "GET", f"{self._url}/models", timeout=CONNECT_S
            ) as response:
                body = await _read(response, _MODELS_LEN)
        except httpx2.TransportError as error:
            raise Unavailable(_reason(error)) from error
        self._require_models(response)
        try:
            return msgspec.json.decode(body, type=_ModelList).data or ()
        except msgspec.DecodeError as error:
            raise StartupFailed(
                f"The upstream {self.host} does not list its models as an OpenAI-compatible API."
            ) from error

    async def frames(self, path: str, body: bytes) -> AsyncGenerator[str]:
        """Yield the data of every frame; leaving early closes the connection.

        Raises ``Unavailable`` where the request may be sent again unless something was yielded, and
        ``UpstreamFault`` where it may not.
        """
        headers = {"Content-Type": "application/json"}
        url = self._url + path
        try:
            async with self._http.sse(url, method="POST", content=body, headers=headers) as source:
                await _check(source.response)
                async for frame in source:
                    if frame.data:
                        yield frame.data
        except httpx2.SSEError as error:
            raise UpstreamFault(
                "upstream-error", f"The upstream's stream cannot be read: {error}"
            ) from error
        except httpx2.ReadTimeout as error:
            raise UpstreamFault(
                "upstream-error", f"The upstream said nothing for {SILENCE_S:g} s."
            ) from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise Unavailable(_reason(error)) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def _require_models(self, response: httpx2.Response) -> None:
        status = response.status_code
        if _is_try_later(status):
            raise Unavailable(f"it answered {status}", _retry_after_s(response))
        if status in _KEY_REFUSED:
            raise StartupFailed(
                f"The upstream {self.host} refuses the key ({status}); set HEADRACE_UPSTREAM_KEY."
            )
        if status != 200:
            raise StartupFailed(
                f"The upstream {self.host} answers {status} to {response.url.path}; "
                "is --upstream the base URL of an OpenAI-compatible API?"
            )


async def _check(response: httpx2.Response) -> None:
    status = response.status_code
    if status == 200:
        return
    said = message_of((await _read(response, _ERROR_LEN)).decode(errors="replace")) or "no reason"
    if _is_try_later(status):
        raise Unavailable(f"it answered {status}: {said}", _retry_after_s(response))
    if response.is_redirect:
        raise UpstreamFault(
            "upstream-error", "The upstream redirects; its final URL must be configured."
        )
    raise UpstreamFault("upstream-refused", f"The upstream refused the job ({status}): {said}")


async def _read(response: httpx2.Response, most: int) -> bytes:
    """Return the body, cut where it is longer than any that is of use."""
    body = b""
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > most:
            break
    return body[:most]


def _is_try_later(status: int) -> bool:
    return status in _TRY_LATER or status >= 500


def _retry_after_s(response: httpx2.Response) -> float:
    try:
        seconds = float(response.headers.get("retry-after", "0"))
    except ValueError:  # a date, which no model server sends
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
