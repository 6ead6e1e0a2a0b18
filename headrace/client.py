"""The Python client: submit a job, follow its events, cancel it, look around.

    async with Client() as client:
        job = await client.submit(JobRequest(prompt="Once"))
        async for n, event in client.follow(job.id):
            ...

Everything raises one of ``headrace.errors``.
"""

import os
import secrets
from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx2
import msgspec

from common.events import Event
from common.jobs import JobState
from headrace.addresses import DEFAULT_URL, is_loopback
from headrace.errors import ClientError, ProtocolError, Unreachable
from headrace.problems import problem_of
from headrace.resume import Follower, Notice, Patience
from headrace.views import (
    Cancellation,
    Job,
    JobPage,
    JobRequest,
    Models,
    Prompt,
    Readiness,
    Submitted,
    Worker,
    Workers,
)

View = TypeVar("View")

SUBMIT_TRIES = 3
_UNAVAILABLE = 503


class Client:
    """One gateway. Use it as an asynchronous context manager; safe for concurrent tasks."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 10.0,
        patience: Patience | None = None,
    ) -> None:
        """Prepare a client; without ``api_key`` that of ``HEADRACE_API_KEY`` is used, if any."""
        self.url = url.rstrip("/")
        key = os.environ.get("HEADRACE_API_KEY", "") if api_key is None else api_key
        self._timeout_s = timeout_s
        self._patience = patience or Patience()
        # A proxy from the environment is for the world outside.
        self._http = httpx2.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=timeout_s,
            trust_env=not is_loopback(url),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def submit(self, request: JobRequest, *, idempotency_key: str = "") -> Submitted:
        """Submit a job once, also where an answer is lost on the way and the request is repeated.

        A second call with the same ``idempotency_key`` returns the first one's job.
        """
        headers = {
            "Idempotency-Key": idempotency_key or secrets.token_hex(16),
            "Content-Type": "application/json",
        }
        body = msgspec.json.encode(request)
        for tries_left in reversed(range(SUBMIT_TRIES)):
            try:
                response = await self._http.post("/v1/jobs", content=body, headers=headers)
            except (httpx2.ReadError, httpx2.RemoteProtocolError) as lost:
                if not tries_left:
                    raise Unreachable(self.url, _reason(lost)) from lost
            except httpx2.HTTPError as error:
                raise Unreachable(self.url, _reason(error)) from error
            else:
                return _read(response, Submitted)
        raise AssertionError("the last try returns or raises")

    def follow(
        self, job_id: str, *, after: int = -1, notice: Notice | None = None
    ) -> AsyncGenerator[tuple[int, Event]]:
        """Yield (n, event) from the event after ``after`` up to the terminal one.

        A cut connection is resumed where it stopped; ``notice`` hears of it. Without a terminal
        event it ends in ``StreamCut``. Leave it early with ``contextlib.aclosing``.
        """
        return Follower(self._http, job_id, after, self._patience, notice).events()

    async def get(self, job_id: str, *, wait_s: float = 0) -> Job:
        """Return the job as it stands, or as it ends within ``wait_s``."""
        params = {"wait": f"{wait_s:g}"} if wait_s else {}
        return _read(await self._get(f"/v1/jobs/{job_id}", params, wait_s), Job)

    async def jobs(
        self, *, status: JobState | None = None, limit: int = 20, cursor: str = ""
    ) -> JobPage:
        """Return jobs, the newest first."""
        params = {"limit": str(limit)}
        params |= {"status": status.value} if status else {}
        params |= {"cursor": cursor} if cursor else {}
        return _read(await self._get("/v1/jobs", params), JobPage)

    async def cancel(self, job_id: str) -> Cancellation:
        """Ask for the job's end; its events tell when it is reached."""
        return _read(await self._send("DELETE", f"/v1/jobs/{job_id}"), Cancellation)

    async def prompt(self, prompt_id: str, *, model: str = "") -> Prompt:
        """Return what is stored under the prompt ID, of the default model where none is named."""
        return _read(await self._get(_prompt_path(prompt_id), _of_model(model)), Prompt)

    async def forget_prompt(self, prompt_id: str, *, model: str = "") -> None:
        """Forget what is stored under the prompt ID."""
        path = _prompt_path(prompt_id)
        response = await self._send("DELETE", path, params=_of_model(model))
        if not response.is_success:
            raise problem_of(response)

    async def workers(self) -> tuple[Worker, ...]:
        """Return the workers that live."""
        return _read(await self._get("/v1/workers"), Workers).data

    async def models(self) -> tuple[str, ...]:
        """Return the models that jobs can name."""
        return tuple(model.id for model in _read(await self._get("/v1/models"), Models).data)

    async def readiness(self) -> Readiness:
        """Return what the gateway says of itself, ready or not."""
        response = await self._get("/readyz")
        if response.status_code == _UNAVAILABLE:
            return _decode(response, Readiness)
        return _read(response, Readiness)

    async def is_ready(self) -> bool:
        """Tell whether a job submitted now would run."""
        return await self._is_ok("/readyz")

    async def is_healthy(self) -> bool:
        """Tell whether the gateway answers at all."""
        return await self._is_ok("/healthz")

    async def _is_ok(self, path: str) -> bool:
        try:
            return (await self._get(path)).is_success
        except ClientError:
            return False

    async def _get(
        self, path: str, params: Mapping[str, str] | None = None, wait_s: float = 0
    ) -> httpx2.Response:
        return await self._send("GET", path, params=params, timeout=self._timeout_s + wait_s)

    async def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            return await self._http.request(method, path, **options)
        except httpx2.HTTPError as error:
            raise Unreachable(self.url, _reason(error)) from error


def _prompt_path(prompt_id: str) -> str:
    return "/v1/prompts/" + quote(prompt_id, safe="")


def _of_model(model: str) -> dict[str, str]:
    return {"model": model} if model else {}


def _read(response: httpx2.Response, view: type[View]) -> View:
    """Return the answer as ``view``; raises ``ApiError`` for a refusal."""
    if not response.is_success:
        raise problem_of(response)
    return _decode(response, view)


def _decode(response: httpx2.Response, view: type[View]) -> View:
    try:
        return msgspec.json.decode(response.content, type=view)
    except msgspec.DecodeError as error:
        raise ProtocolError(
            f"{response.url} does not answer like a Headrace gateway: {error}"
        ) from error


def _reason(error: httpx2.HTTPError) -> str:
    return str(error) or type(error).__name__
