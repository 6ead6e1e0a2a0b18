"""``/v1/ws`` under messages and frames of every kind: each is answered, or the socket is closed.

The gateway is a process of its own: hypothesis guards the random numbers of this one.
"""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode, Opcode
from websockets.sync.client import ClientConnection, connect

from common.job_store import JobStore
from gateway import socket_messages as messages
from tests.gateway.followers import EventMessage, check_is_log, log_of
from tests.gateway.fuzzing import EXAMPLES, profile
from tests.gateway.raw import request
from tests.support.fleet import Fleet
from tests.support.jobs import make_job
from tests.support.jobs import submit as submit_foreign
from tests.support.readers import WsReader
from tests.support.waiting import within

DEADLINE_S = 10.0
BODY_LIMIT = 64 * 1024
MISSING = "job_" + "0" * 32
LAST = "the last one"
HANDSHAKE = request(
    "GET",
    "/v1/ws",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
CLOSED = {CloseCode.PROTOCOL_ERROR, CloseCode.INVALID_DATA, CloseCode.MESSAGE_TOO_BIG}

pytestmark = pytest.mark.timeout(3600 if EXAMPLES else 120)

_decode = msgspec.json.Decoder(messages.ToClient | EventMessage).decode


@dataclass(frozen=True)
class Target:
    """A gateway, IDs that mean something there, and a neighbour that follows a job."""

    url: str
    job_ids: tuple[str, ...]
    neighbour: WsReader

    @property
    def address(self) -> tuple[str, int]:
        """Where to connect."""
        place = urlsplit(self.url)
        assert place.hostname
        assert place.port
        return place.hostname, place.port

    def connect(self) -> ClientConnection:
        """Open a socket."""
        address = f"ws{self.url.removeprefix('http')}/v1/ws"
        return connect(address, proxy=None, open_timeout=DEADLINE_S, max_size=None)


@pytest.fixture
async def target(fleet: Fleet, store: JobStore) -> AsyncIterator[Target]:
    """Jobs that have ended, run, belong to somebody else, and are none; the neighbour is whole."""
    await fleet.start(workers=1, max_body_bytes=BODY_LIMIT, fake_tokens_per_s=50)
    ended = await fleet.submit("Once", max_tokens=3)
    await fleet.follow(ended)
    running = await fleet.submit("Once", max_tokens=5_000)
    foreign = await submit_foreign(store, make_job())
    watched = await fleet.submit("Once", max_tokens=100_000)
    neighbour = WsReader(watched)
    reading = asyncio.create_task(neighbour.read(fleet.urls[0]))
    await neighbour.has(3)

    yield Target(fleet.urls[0], (ended, running, foreign.id, MISSING), neighbour)

    await fleet.gateways[0].client.cancel(watched)
    async with within():
        await reading
    check_is_log(neighbour.seen, await log_of(store, watched))
    log = fleet.gateways[0].program.errors
    for fault in ("request_failed", "socket_failed", "Traceback"):
        assert fault not in log


def anything() -> st.SearchStrategy[object]:
    """Return JSON values."""
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    return st.recursive(
        scalars,
        lambda part: (
            st.lists(part, max_size=4) | st.dictionaries(st.text(max_size=10), part, max_size=4)
        ),
        max_leaves=10,
    )


def requests_of(job_ids: tuple[str, ...]) -> st.SearchStrategy[dict[str, object]]:
    """Return messages in their right form, about jobs of every kind."""
    job = st.sampled_from(job_ids) | st.text(max_size=40)
    jobs = st.fixed_dictionaries(
        {"prompt": st.text(min_size=1, max_size=10), "max_tokens": st.integers(1, 5)}
    )
    keys = st.sampled_from(["a", "b"])
    return st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("subscribe"), "job": job},
            optional={"after": st.integers(-2, 6) | st.integers()},
        ),
        st.fixed_dictionaries({"type": st.sampled_from(["unsubscribe", "cancel"]), "job": job}),
        st.fixed_dictionaries(
            {"type": st.just("submit"), "job": jobs},
            optional={"subscribe": st.booleans(), "idempotency_key": keys},
        ),
    )


def spoiled(job_ids: tuple[str, ...]) -> st.SearchStrategy[object]:
    """Return messages with something wrong in one place, or in all."""
    fields = ["type", "job", "after", "ref", "subscribe", "idempotency_key", "other"]
    return st.one_of(
        anything(),
        st.builds(
            lambda message, field, value: {**message, field: value},
            requests_of(job_ids),
            st.sampled_from(fields),
            anything(),
        ),
    )


def texts(job_ids: tuple[str, ...]) -> st.SearchStrategy[str | bytes]:
    """Return what a client may send as one message: JSON, almost JSON, and no JSON at all."""
    text = (requests_of(job_ids) | spoiled(job_ids)).map(json.dumps)
    return st.one_of(
        text,
        st.builds(lambda whole, cut: whole[: -cut or None], text, st.integers(1, 20)),
        st.text(max_size=100),
        st.binary(max_size=100),
        st.sampled_from(
            [
                "",
                "[" * 60_000,
                '{"type":' * 5_000,
                '{"type":"subscribe","job":"\\ud800"}',
                '{"type":"subscribe","type":"cancel","job":"x","job":"y"}',
                '{"type":"subscribe","job":"x","after":1e400}',
                '{"type":"subscribe","job":"x","after":' + "9" * 5_000 + "}",
                '{"type":"submit","job":{"prompt":"' + "a" * (BODY_LIMIT - 100) + '"}}',
            ]
        ),
    )


async def test_every_message_is_answered(target: Target) -> None:
    """Exactly once, in a documented form, whatever it is and however they are mixed."""

    @profile(60)
    @given(sent=st.lists(texts(target.job_ids), max_size=12))
    def fuzz(sent: list[str | bytes]) -> None:
        with target.connect() as connection:
            for message in sent:
                connection.send(message)
            connection.send(json.dumps({"type": "unsubscribe", "job": "", "ref": LAST}))
            num_answers = 0
            while True:
                answer = _decode(connection.recv(DEADLINE_S))
                if isinstance(answer, messages.Refused):
                    num_answers += answer.job is None  # else it speaks of a subscription
                    assert answer.error.status != 500
                    if answer.ref == LAST:
                        break
                else:
                    num_answers += not isinstance(answer, EventMessage)
            assert num_answers == len(sent) + 1

    await asyncio.to_thread(fuzz)


async def test_a_message_above_the_limit_closes_the_socket(target: Target) -> None:
    """With the code that says so, which arrives although the message is still on its way."""

    def send(data: str | bytes | list[str]) -> int:
        with target.connect() as connection:
            with pytest.raises(ConnectionClosed) as closed:  # noqa: PT012 - it may break in either
                connection.send(data)
                connection.recv(DEADLINE_S)
            assert closed.value.rcvd, "the socket broke without a word"
            return closed.value.rcvd.code

    text, fragments = "a" * (BODY_LIMIT + 1), ["a" * 1024] * (BODY_LIMIT // 512)
    for data in (text, b"a" * 200 * BODY_LIMIT, fragments):
        assert await asyncio.to_thread(send, data) == CloseCode.MESSAGE_TOO_BIG


@dataclass(frozen=True)
class RawFrame:
    """A frame as it never should be."""

    first: int  # FIN, RSV and the opcode
    mask: bool
    payload: bytes
    declared: int | None = None  # a length that is not the payload's

    def encode(self) -> bytes:
        """Return its bytes; the mask is zero."""
        length = len(self.payload) if self.declared is None else self.declared
        flag = 0x80 if self.mask else 0
        if length < 126:
            head = struct.pack("!BB", self.first, flag | length)
        elif length < 65_536:
            head = struct.pack("!BBH", self.first, flag | 126, length)
        else:
            head = struct.pack("!BBQ", self.first, flag | 127, length)
        return head + (b"\0\0\0\0" if self.mask else b"") + self.payload


def good(opcode: int, payload: bytes = b"", *, fin: bool = True) -> RawFrame:
    """Return a frame as it should be."""
    return RawFrame((0x80 if fin else 0) | opcode, mask=True, payload=payload)


def open_raw(target: Target) -> socket.socket:
    """Return a connection after the handshake; it reads little at a time."""
    raw = socket.create_connection(target.address, DEADLINE_S)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.sendall(HANDSHAKE)
    received = b""
    while not received.endswith(b"\r\n\r\n"):
        received += raw.recv(65_536)
    assert received.startswith(b"HTTP/1.1 101 ")
    return raw


def close_codes(target: Target, sent: bytes) -> list[int]:
    """Send bytes over an open WebSocket; return the codes of the close frames that came."""
    received = b""
    with closing(open_raw(target)) as raw:
        try:
            raw.sendall(sent)
            raw.shutdown(socket.SHUT_WR)
            while data := raw.recv(65_536):
                received += data
        except (BrokenPipeError, ConnectionResetError):
            pass
    return list(_codes(received))


def _codes(data: bytes) -> Iterator[int]:
    position = 0
    while position + 2 <= len(data):
        opcode, length = data[position] & 15, data[position + 1] & 127
        position += 2
        if length >= 126:
            size = 2 if length == 126 else 8
            length = int.from_bytes(data[position : position + size], "big")
            position += size
        payload = data[position : position + length]
        position += length
        if opcode == Opcode.CLOSE:
            yield int.from_bytes(payload[:2], "big") if payload else CloseCode.NO_STATUS_RCVD


async def test_frames_of_every_kind_end_in_a_documented_code(target: Target) -> None:
    """Reserved bits, unknown opcodes, missing masks, wrong lengths, or plain noise."""
    frames = st.builds(
        RawFrame,
        first=st.integers(0, 255),
        mask=st.booleans() | st.just(True),
        payload=st.binary(max_size=200) | st.just(b'{"type":"cancel","job":"x"}'),
        declared=st.none() | st.none() | st.integers(0, 2**63 - 1),
    ).map(RawFrame.encode)

    @profile(60)
    @given(sent=st.lists(frames | st.binary(max_size=50), max_size=8))
    def fuzz(sent: list[bytes]) -> None:
        whole = b"".join(sent)
        codes = close_codes(target, whole)
        assert len(codes) <= 1
        for code in codes:  # ours, or the echo of a close frame that was among the noise
            assert code in CLOSED or b"\x88" in whole
            assert code != CloseCode.INTERNAL_ERROR or struct.pack("!H", 1011) in whole

    await asyncio.to_thread(fuzz)


WRONG = {
    "unmasked": ([RawFrame(0x81, mask=False, payload=b"{}")], CloseCode.PROTOCOL_ERROR),
    "opcode": ([good(3, b"x")], CloseCode.PROTOCOL_ERROR),
    "continuation": ([good(Opcode.CONT, b"x")], CloseCode.PROTOCOL_ERROR),
    "ping": ([good(Opcode.PING, b"x" * 126)], CloseCode.PROTOCOL_ERROR),
    "utf-8": ([good(Opcode.TEXT, b"\xff\xfe")], CloseCode.INVALID_DATA),
    "fragments": (
        [good(Opcode.TEXT, b"a", fin=False), *[good(Opcode.CONT, fin=False)] * 2_000],
        CloseCode.MESSAGE_TOO_BIG,
    ),
    "length": (
        [RawFrame(0x81, mask=True, payload=b"", declared=2**62)],
        CloseCode.MESSAGE_TOO_BIG,
    ),
}


async def test_a_wrong_frame_has_its_code(target: Target) -> None:
    """Which arrives, although more was sent after it."""
    for name, (frames, code) in WRONG.items():
        sent = b"".join(frame.encode() for frame in frames) + good(Opcode.PING).encode() * 10_000
        codes = await asyncio.to_thread(close_codes, target, sent)
        assert codes == [code], name


async def test_pongs_do_not_pile_up(target: Target, fleet: Fleet) -> None:
    """A client that pings and never reads costs no memory, and loses nothing but pongs."""

    def flood() -> int:
        """Send 50 MB; return what the gateway then holds."""
        ping = good(Opcode.PING, b"x" * 125).encode() * 2_000
        with closing(open_raw(target)) as raw:
            for _ in range(200):
                raw.sendall(ping)
            return rss_of(fleet.gateways[0].program.pid)

    before = rss_of(fleet.gateways[0].program.pid)
    assert await asyncio.to_thread(flood) - before < 20_000_000


def rss_of(pid: int) -> int:
    """Return a process's resident memory."""
    return int(psutil.Process(pid).memory_info().rss)
