"""The errors that cross a process or reach a user.

HeadraceError
├── Problem              a refusal with a status, a stable type and one sentence (RFC 9457)
├── StartupFailed        the process cannot start; one line says why (exit code 3)
├── EngineFailed         the engine cannot go on; its worker ends
└── LeaseLapsed (lanes), TakeoverMismatch and RequestFailed (worker.engine): beside their owners
"""

from collections.abc import Mapping
from types import MappingProxyType

URN = "urn:headrace:problem:"
STREAM_DIVERGED = "stream-diverged"
"""The type of the problem that makes a reader's cursor worthless."""


class HeadraceError(Exception):
    """The root of Headrace's own errors."""


class Problem(HeadraceError):
    """A refusal that a client can act on.

    ``type`` is stable (the last part of the problem's URN), ``detail`` says in one sentence what
    is wrong and what to do. ``retry_after_s`` is set where waiting helps. ``headers`` go with the
    answer.
    """

    def __init__(
        self,
        status: int,
        type_: str,
        detail: str,
        *,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.type = type_
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.headers = headers

    @property
    def urn(self) -> str:
        """The type as the URI that RFC 9457 asks for."""
        return URN + self.type

    @property
    def title(self) -> str:
        """The type as words."""
        return self.type.replace("-", " ").capitalize()


class StartupFailed(HeadraceError):
    """A process cannot start; the text is the one line that the user sees."""


class EngineFailed(HeadraceError):
    """The engine cannot go on."""
