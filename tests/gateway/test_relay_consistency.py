"""The property that everything else serves: every subscriber sees exactly the log.

Hypothesis decides who attaches, reads, leaves and comes back while events are appended, and what
becomes of every message of the doorbell: delivered, dropped, repeated or held back behind later
ones. The log is real, and so is the connection that the messages come on.
"""

import asyncio
import enum
import secrets
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from itertools import cycle
from unittest.mock import patch

import anyio
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from common.connections import command_client
from common.errors import Problem
from common.job_store import JobStore
from common.keys import Keys
from gateway import doorbell as doorbell_module
from gateway.doorbell import Doorbell, OnMessage
from gateway.relay import Relay
from gateway.transcript import Offer, Transcript
from gateway.watch import Watch
from tests.gateway.followers import Follower, check_is_log, log_of
from tests.gateway.player import Attempt
from tests.gateway.running import running_relay, until_idle
from tests.support.jobs import TENANT, start, submit
from tests.support.leaks import clear
from tests.support.subscriptions import kill_subscriptions
from tests.support.waiting import within

NUM_FOLLOWERS = 3
RESYNC_S = 0.02
LOOP = {"use_uvloop": True}


class Fate(enum.Enum):
    """What becomes of a message of the doorbell."""

    DELIVERED = enum.auto()
    DROPPED = enum.auto()
    REPEATED = enum.auto()
    HELD = enum.auto()  # it comes after the next one that is delivered


class Verb(enum.Enum):
    """What happens next."""

    SAY = enum.auto()
    ATTACH = enum.auto()
    READ = enum.auto()
    LEAVE = enum.auto()
    CUT = enum.auto()  # the connection of the doorbell


@dataclass(frozen=True)
class Scenario:
    """Fates of the messages, over and over, and steps: a verb and whom or how much it concerns.

    ``choices``, over and over, says which of the job's answers a step speaks of.
    """

    fates: tuple[Fate, ...]
    steps: tuple[tuple[Verb, int], ...]
    choices: tuple[int, ...]


_VERBS = [Verb.SAY] * 4 + [Verb.ATTACH, Verb.READ] * 3 + [Verb.LEAVE, Verb.CUT]
scenarios = st.builds(
    Scenario,
    st.lists(st.sampled_from(Fate), min_size=1, max_size=12).map(tuple),
    st.lists(
        st.tuples(st.sampled_from(_VERBS), st.integers(0, NUM_FOLLOWERS - 1)), max_size=40
    ).map(tuple),
    st.just((0,)) | st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple),
)


class FaultyDoorbell(Doorbell):
    """Gives every message the next fate before the relay hears of it."""

    def __init__(self, fates: Iterable[Fate], subscriber: Redis, redis: Redis, probe: str) -> None:
        super().__init__(subscriber, redis, probe)
        self._fates = cycle(fates)
        self._held: list[tuple[str, bytes]] = []

    async def run(self, on_message: OnMessage, on_reconnect: Callable[[], None]) -> None:
        """Listen through the fault layer."""

        def deliver(channel: str, data: bytes) -> None:
            fate = next(self._fates)
            if fate is Fate.HELD:
                self._held.append((channel, data))
            elif fate is not Fate.DROPPED:
                for _ in range(2 if fate is Fate.REPEATED else 1):
                    on_message(channel, data)
                while self._held:
                    on_message(*self._held.pop())

        await super().run(deliver, on_reconnect)


async def play(url: str, scenario: Scenario, patience_s: float) -> None:
    """Act the scenario out and check every follower against the log."""
    keys = Keys(prefix=f"t-{secrets.token_hex(6)}")

    def make_doorbell(subscriber: Redis, redis: Redis, probe: str) -> Doorbell:
        return FaultyDoorbell(scenario.fates, subscriber, redis, probe)

    async with aclosing(command_client(url)) as redis:
        try:
            async with running_relay(url, keys, resync_s=RESYNC_S, doorbell=make_doorbell) as relay:
                await _act(redis, JobStore(redis, keys), relay, scenario, patience_s)
        finally:
            await clear(redis, keys.prefix)


async def _act(
    redis: Redis, store: JobStore, relay: Relay, scenario: Scenario, patience_s: float
) -> None:
    job_id = (await submit(store)).id
    attempt = Attempt(store, job_id, await start(store, job_id), 2)
    followers = [Follower(relay, TENANT, job_id) for _ in range(NUM_FOLLOWERS)]
    attached: set[Follower] = set()
    for (verb, number), choice in zip(scenario.steps, cycle(scenario.choices), strict=False):
        follower = followers[number]
        match verb:
            case Verb.SAY:
                await attempt.say(*"abc"[: number + 1], choice=choice)
            case Verb.ATTACH if follower not in attached:
                attached.add(follower)
                await follower.attach()
            case Verb.READ:
                await redis.ping()  # a round trip, so that messages come in
                follower.read()
            case Verb.LEAVE:
                attached.discard(follower)
                await follower.leave()
            case Verb.CUT:
                await kill_subscriptions(redis)
    await attempt.end()
    await _read_to_end(followers, patience_s)
    log = await log_of(store, job_id)
    for follower in followers:
        check_is_log(follower.seen, log)
    await until_idle(relay)


async def _read_to_end(followers: list[Follower], patience_s: float) -> None:
    try:
        async with within(patience_s):
            await asyncio.gather(*(follower.read_to_end() for follower in followers))
    except TimeoutError:
        raise AssertionError("a follower never saw the end") from None


@pytest.mark.fault(26)
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(scenario=scenarios)
def test_every_subscriber_sees_exactly_the_log(redis_url: str, scenario: Scenario) -> None:
    """No drop, repetition, reordering, reconnect or resumption makes a gap or a double."""
    with patch.object(doorbell_module, "RETRY_S", 0.001):
        anyio.run(play, redis_url, scenario, 10.0, backend_options=LOOP)


def _take_whatever_comes(self: Transcript, incarnation: str, n: int, payload: bytes) -> Offer:
    return _offer(self, incarnation, len(self), payload)


def _never_read_again(_self: Relay, _watch: Watch) -> asyncio.Future[None]:
    done = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


_offer = Transcript.offer


@pytest.mark.control(26)
def test_without_the_merge_the_property_fails(redis_url: str) -> None:
    """Taking messages as they come, without a look at the log, is caught: the property bites."""
    counterexamples: list[Scenario] = []

    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(scenario=scenarios)
    def search(scenario: Scenario) -> None:
        if counterexamples:
            return
        try:
            anyio.run(play, redis_url, scenario, 0.5, backend_options=LOOP)
        except (AssertionError, Problem):
            counterexamples.append(scenario)

    with (
        patch.object(doorbell_module, "RETRY_S", 0.001),
        patch.object(Transcript, "offer", _take_whatever_comes),
        patch.object(Relay, "_start_catch_up", _never_read_again),
    ):
        search()
    assert counterexamples
