"""Signed links: one job's events for who cannot send headers, such as a browser's EventSource.

A link is a tenant, a job and a time, with an HMAC of the fleet's secret: every gateway can check
it, and nothing is stored. It cannot be revoked, so it is short-lived.
"""

import hashlib
import hmac
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error

import msgspec

from gateway.secret import SharedSecret

_MAC_LEN = 32
_PURPOSE = b"headrace-link\0"  # the secret has other uses


class Link(msgspec.Struct, frozen=True, array_like=True):
    """What a link allows: to read the events of one job until a time (seconds, Unix)."""

    tenant: str
    job: str
    expires: int


class Links:
    """Signs and checks links."""

    def __init__(self, secret: SharedSecret) -> None:
        self._secret = secret

    async def sign(self, link: Link) -> str:
        """Return the link as text that fits into a query."""
        payload = _encoder.encode(link)
        return urlsafe_b64encode(await self._mac(payload) + payload).rstrip(b"=").decode()

    async def read(self, text: str) -> Link | None:
        """Return the link, ``None`` where it is forged, damaged or over."""
        try:
            raw = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
            mac, payload = raw[:_MAC_LEN], raw[_MAC_LEN:]
            if not hmac.compare_digest(mac, await self._mac(payload)):
                return None
            link = _decoder.decode(payload)
        except (UnicodeEncodeError, Base64Error, msgspec.MsgspecError):
            return None
        return link if time.time() < link.expires else None

    async def _mac(self, payload: bytes) -> bytes:
        return hmac.new(await self._secret.get(), _PURPOSE + payload, hashlib.sha256).digest()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Link)
