"""TLS for tests: an authority, certificates of its own, and a TLS door before a plain server."""

import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.fault_proxy import fault_proxy

OPENSSL = shutil.which("openssl")
NEEDS_OPENSSL = "needs openssl, which makes the certificates (Debian: apt-get install openssl)"


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, as files."""

    file: Path
    key: Path


class Authority:
    """A certificate authority that lives in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder / name
        self._folder.mkdir()
        self.own = self._make("ca", "-addext", "basicConstraints=critical,CA:TRUE")

    def issue(self, name: str, host: str) -> Certificate:
        """Return a certificate for a host, given as ``IP:...`` or ``DNS:...``."""
        signer = ("-CA", str(self.own.file), "-CAkey", str(self.own.key))
        return self._make(name, *signer, "-addext", f"subjectAltName={host}")

    def _make(self, name: str, *options: str) -> Certificate:
        made = Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        command = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        command += ["-nodes", "-days", "2", "-subj", f"/CN={name}", *options]
        command += ["-keyout", str(made.key), "-out", str(made.file)]
        assert OPENSSL
        subprocess.run([OPENSSL, *command], check=True, capture_output=True)
        return made


@asynccontextmanager
async def tls_door(
    port: int, shown: Certificate, asks_for: Path | None = None
) -> AsyncIterator[int]:
    """Open a TLS port before a plain one; gives its number.

    ``asks_for`` is the authority of the certificates that clients must show.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(shown.file, shown.key)
    if asks_for:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(asks_for)
    async with fault_proxy(port, tls=context) as proxy:
        yield proxy.port
