"""The door of ``/v1/ws``: many jobs on one socket.

Two tasks per socket: one answers the client's messages in order, one sends events. There is no
queue between them and the jobs: a subscription is a cursor, and a socket that lags gets merged
events when it reads again.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from common.api_keys import Scope
from common.connections import UNAVAILABLE
from common.errors import Problem
from gateway import socket_messages as messages
from gateway.cancellation import cancel_job
from gateway.dialects import native_ws
from gateway.identity import Caller
from gateway.problems import UNAUTHENTICATED, redis_unavailable
from gateway.protocol import connection_of
from gateway.reading import bad_request, decode_json, read_idempotency_key, read_job_id
from gateway.services import Services, services_of
from gateway.submission import Acceptance, accept
from gateway.watch import Cursor, Signal

_log = structlog.get_logger()

MAX_SUBSCRIPTIONS = 1_000
GOING_AWAY = 1012
INTERNAL_ERROR = 1011
TRY_AGAIN_LATER = 1013
POLICY_VIOLATION = 1008
CLOSE_S = 5.0


async def serve(websocket: WebSocket) -> None:
    """Serve one socket until its client leaves or the gateway drains."""
    services = services_of(websocket)
    try:
        services.streams.require_room()
        await services.doorkeeper.identify(websocket)
    except (Problem, *UNAVAILABLE) as error:
        is_refused = isinstance(error, Problem) and error.status == UNAUTHENTICATED
        # Before the handshake, where it is an HTTP 403.
        await websocket.close(POLICY_VIOLATION if is_refused else TRY_AGAIN_LATER)
        return
    await websocket.accept()
    await Socket(websocket, services).run()


class Socket:
    """One client's socket and its subscriptions."""

    def __init__(self, websocket: WebSocket, services: Services) -> None:
        self.sent_at = time.monotonic()
        self.sending_since = 0.0
        self._websocket = websocket
        self._services = services
        self._cursors: dict[str, Cursor] = {}
        self._afterwards: list[messages.ToClient] = []  # to be sent after the answer
        self._unannounced: list[str] = []  # subscribed, but the client has not been told yet
        self._ready: dict[str, None] = {}  # jobs with news, in order of arrival
        self._signal = Signal()
        self._writing = asyncio.Lock()  # answers and events share one pipe
        self._draining = False
        self._connection = connection_of(websocket.scope)

    async def run(self) -> None:
        """Run both tasks; the first that ends, ends the socket, and says why."""
        self._services.streams.add(self)
        tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write_events())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            async with asyncio.timeout(CLOSE_S):
                await self._say_goodbye(next(iter(done)).exception())
        except (TimeoutError, WebSocketDisconnect):
            self.cut()  # it takes nothing, not even the close
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._services.streams.remove(self)
            for cursor in self._cursors.values():
                await self._services.relay.close(cursor)

    async def _say_goodbye(self, error: BaseException | None) -> None:
        if isinstance(error, WebSocketDisconnect):
            return
        if error is not None:
            _log.error("socket_failed", exc_info=error)
            problem = Problem(500, "internal-error", "This socket failed; reconnect and resume.")
            await self._send(_refused(problem))
            await self._websocket.close(INTERNAL_ERROR)
        else:
            await self._websocket.close(GOING_AWAY, "this gateway stops; reconnect to resume")

    async def _read(self) -> None:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            await self._send(await self._answer(message.get("text")))
            while self._afterwards:
                await self._send(self._afterwards.pop(0))
            self._announce()

    async def _answer(self, text: str | None) -> messages.ToClient:
        ref = None
        try:
            if text is None:
                raise bad_request("binary-message", "Send JSON as text messages, not binary ones.")
            data = text.encode()
            ref = _read_ref(data)
            return await self._handle(decode_json(data, _decoder))
        except Problem as problem:
            return _refused(problem, ref=ref)
        except UNAVAILABLE:
            return _refused(redis_unavailable(), ref=ref)

    async def _handle(self, message: messages.FromClient) -> messages.ToClient:
        match message:
            case messages.Submit():
                return await self._submit(message, await self._caller(Scope.SUBMIT))
            case messages.Subscribe():
                tenant = (await self._caller(Scope.READ)).tenant
                await self._subscribe(tenant, read_job_id(message.job), message.after)
                return messages.Subscribed(message.job, message.after, message.ref)
            case messages.Unsubscribe():
                await self._unsubscribe(message.job)
                return messages.Unsubscribed(message.job, message.ref)
            case messages.Cancel():
                tenant = (await self._caller(Scope.SUBMIT)).tenant
                met = await cancel_job(self._services, tenant, read_job_id(message.job))
                return messages.CancelAnswer(met.id, met.status, met.cancelled, message.ref)

    async def _caller(self, scope: Scope) -> Caller:
        """Return who asks, each time anew: the key may have been revoked since."""
        caller = await self._services.doorkeeper.identify(self._websocket)
        caller.require(scope)
        return caller

    async def _submit(self, message: messages.Submit, caller: Caller) -> messages.ToClient:
        key = read_idempotency_key(message.idempotency_key)
        if message.subscribe:
            self._require_room()  # before the job is accepted
        acceptance = await accept(self._services, caller, message.job, key)
        job = acceptance.job
        if message.subscribe and job.id not in self._cursors:
            await self._subscribe_accepted(caller.tenant, acceptance)
        return messages.Submitted(job.id, job.status, job.model, message.ref)

    async def _subscribe_accepted(self, tenant: str, acceptance: Acceptance) -> None:
        """Subscribe; what goes wrong is told after the answer, because the job is accepted."""
        job_id, subject = acceptance.job.id, acceptance.subject
        try:
            if subject is not None:
                await self._follow(job_id, partial(self._services.relay.open_new, subject))
            else:
                await self._subscribe(tenant, job_id, -1)
        except Problem as problem:
            self._afterwards.append(_refused(problem, job=job_id))
        except UNAVAILABLE:
            self._afterwards.append(_refused(redis_unavailable(), job=job_id))

    async def _subscribe(self, tenant: str, job_id: str, after: int) -> None:
        if job_id in self._cursors:
            detail = "This socket follows the job already; unsubscribe first."
            raise Problem(409, "already-subscribed", detail)
        self._require_room()
        if after < -1:
            raise bad_request("invalid-parameter", "`after` must be -1 or an event's number.")
        relay = self._services.relay
        await self._follow(job_id, partial(relay.open, tenant, job_id, after + 1))

    async def _follow(
        self, job_id: str, open_cursor: Callable[[Callable[[], None]], Awaitable[Cursor]]
    ) -> None:
        def wake() -> None:
            if not self._deliver_now(job_id):
                self._ready[job_id] = None
                self._signal.set()

        self._cursors[job_id] = await open_cursor(wake)
        self._unannounced.append(job_id)

    def _require_room(self) -> None:
        if len(self._cursors) >= MAX_SUBSCRIPTIONS:
            detail = f"A socket follows {MAX_SUBSCRIPTIONS} jobs at most; open another one."
            raise Problem(429, "too-many-subscriptions", detail)

    def _announce(self) -> None:
        """Let events flow, now that the answer that names their job was sent."""
        for job_id in self._unannounced:
            self._ready[job_id] = None
        self._unannounced.clear()
        self._signal.set()

    async def _unsubscribe(self, job_id: str) -> None:
        cursor = self._cursors.pop(job_id, None)
        if cursor is None:
            detail = "This socket does not follow that job; it may have ended."
            raise Problem(404, "not-subscribed", detail)
        await self._services.relay.close(cursor)

    async def _write_events(self) -> None:
        while not self._draining:
            await self._signal.wait()
            ready, self._ready = self._ready, {}
            for job_id in ready:
                await self._deliver(job_id)

    def _deliver_now(self, job_id: str) -> bool:
        """Send what is new, if that is all there is to do and the client keeps up."""
        connection, cursor = self._connection, self._cursors.get(job_id)
        is_idle = self._signal.is_awaited and not self._writing.locked()
        if not (is_idle and connection and connection.is_writable):
            return False
        if cursor is None or job_id in self._unannounced or cursor.watch.failure is not None:
            return False
        for frame in cursor.take(native_ws.frame):
            connection.write(frame)
        self.sent_at = time.monotonic()
        return not cursor.is_done

    async def _deliver(self, job_id: str) -> None:
        cursor = self._cursors.get(job_id)
        if cursor is None or job_id in self._unannounced:
            return
        try:
            for frame in cursor.take(native_ws.frame):
                if self._cursors.get(job_id) is not cursor:
                    return  # unsubscribed while a frame was sent
                await self._send_text(frame)
        except Problem as problem:
            await self._drop(job_id, cursor)
            await self._send(_refused(problem, job=job_id))
            return
        if cursor.is_done:
            await self._drop(job_id, cursor)

    async def _drop(self, job_id: str, cursor: Cursor) -> None:
        if self._cursors.get(job_id) is cursor:
            del self._cursors[job_id]
        await self._services.relay.close(cursor)

    async def _send(self, message: messages.ToClient) -> None:
        await self._send_text(_encoder.encode(message))

    async def _send_text(self, text: bytes) -> None:
        async with self._writing:
            self.sending_since = time.monotonic()
            await self._websocket.send({"type": "websocket.send", "text": text.decode()})
            self.sent_at = time.monotonic()
            self.sending_since = 0.0

    def ping(self) -> None:
        """Do nothing: the server's protocol pings by itself."""
        self.sent_at = time.monotonic()

    def cut(self) -> None:
        """End at once: the reader takes nothing. Both tasks see a client that left."""
        _log.info("socket_cut")
        if self._connection:
            self._connection.abort()

    def drain(self) -> None:
        """End soon: the reader will resume elsewhere."""
        self._draining = True
        self._signal.set()


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[messages.FromClient] = msgspec.json.Decoder(messages.FromClient)
_ref_decoder = msgspec.json.Decoder(messages.Reference)


def _read_ref(data: bytes) -> str | None:
    """Return the message's ``ref`` also where the rest of it is wrong."""
    try:
        return _ref_decoder.decode(data).ref
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _refused(
    problem: Problem, *, job: str | None = None, ref: str | None = None
) -> messages.Refused:
    view = messages.SocketProblem(problem.urn, problem.title, problem.status, problem.detail)
    return messages.Refused(view, job, ref)
