"""The job's log: what append accepts, and that nothing else gets in."""

import itertools
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from common import job_store
from common.connections import pubsub_client
from common.events import Retrying, Tokens, decode_event, encode_event, is_terminal
from common.job_store import Append, JobStore, Outcome
from common.keys import Keys
from common.registry import Registry
from tests.support.cutting import cut_for_now
from tests.support.jobs import (
    BROKEN,
    RETENTION_MS,
    append,
    make_job,
    make_payloads,
    read,
    start,
    submit,
)
from tests.support.waiting import eventually, within


async def _texts(store: JobStore, job_id: str) -> list[str]:
    events = [decode_event(payload) for _, payload in await store.log(job_id)]
    return [event.text for event in events if isinstance(event, Tokens)]


async def test_append_writes_the_events_in_order(store: JobStore) -> None:
    """Events get the numbers they were sent with."""
    job = await submit(store)
    epoch = await start(store, job.id)
    assert await append(store, job.id, epoch, 2, "a", "b") == (Outcome.OK, 4)
    assert await append(store, job.id, epoch, 4, "c") == (Outcome.OK, 5)
    assert [n for n, _ in await store.log(job.id)] == [0, 1, 2, 3, 4]
    assert await _texts(store, job.id) == ["a", "b", "c"]


async def test_append_twice_writes_once(store: JobStore) -> None:
    """A worker whose reply was lost sends again, and the log has the events once."""
    job = await submit(store)
    epoch = await start(store, job.id)
    for _ in range(2):
        assert await append(store, job.id, epoch, 2, "a", "b") == (Outcome.OK, 4)
    assert await _texts(store, job.id) == ["a", "b"]


async def test_append_heals_an_overlap(store: JobStore) -> None:
    """Of what the log has in part, only the rest is written."""
    job = await submit(store)
    epoch = await start(store, job.id)
    await append(store, job.id, epoch, 2, "a", "b")
    assert await append(store, job.id, epoch, 3, "b", "c") == (Outcome.OK, 5)
    assert await _texts(store, job.id) == ["a", "b", "c"]


@pytest.mark.fault(11)
async def test_append_refuses_a_gap_and_is_healed(store: JobStore) -> None:
    """A server that came back without its last second says from where to send again."""
    job = await submit(store)
    epoch = await start(store, job.id)
    assert await append(store, job.id, epoch, 4, "c") == (Outcome.GAP, 2)
    assert await _texts(store, job.id) == []
    assert await append(store, job.id, epoch, 2, "a", "b", "c") == (Outcome.OK, 5)
    assert await _texts(store, job.id) == ["a", "b", "c"]


@pytest.mark.fault(2)
async def test_a_zombie_cannot_append(store: JobStore, redis: Redis, keys: Keys) -> None:
    """After a takeover the old holder is fenced, and it is the fence that refuses.

    The control: the stream itself would take the same event from the same zombie.
    """
    job = await submit(store)
    old = await start(store, job.id, "w1")
    new = await start(store, job.id, "w2")
    assert await append(store, job.id, old, 3, "zombie") == (Outcome.FENCED, 3)
    assert await append(store, job.id, new, 3, "a") == (Outcome.OK, 4)
    assert await _texts(store, job.id) == ["a"]
    [zombie] = make_payloads("zombie")
    assert await redis.xadd(keys.job(job.id).log, {"event": zombie}, id="0-5")
    assert await _texts(store, job.id) == ["a", "zombie"]


async def test_nothing_follows_the_end(store: JobStore) -> None:
    """Append to a finished log is refused, also by the holder of the epoch."""
    job = await submit(store)
    epoch = await start(store, job.id)
    await store.finish(job.id, (epoch, 2), BROKEN, RETENTION_MS)
    assert await append(store, job.id, epoch, 3, "late") == (Outcome.CLOSED, 3)
    assert is_terminal(decode_event((await store.log(job.id))[-1][1]))


@pytest.mark.fault(11)
async def test_append_does_not_bring_a_forgotten_job_back(
    store: JobStore, redis: Redis, keys: Keys
) -> None:
    """When the record is gone, nothing is written, so nothing stays without a TTL."""
    job = await submit(store)
    epoch = await start(store, job.id)
    await redis.delete(keys.job(job.id).record, keys.job(job.id).log)
    assert await append(store, job.id, epoch, 2, "a") == (Outcome.GONE, 0)
    assert not await redis.exists(keys.job(job.id).log)


async def test_append_reports_a_cancel(store: JobStore) -> None:
    """The holder learns of a cancel with its next append, which is still written."""
    job = await submit(store)
    epoch = await start(store, job.id)
    await store.cancel(job.id)
    assert await append(store, job.id, epoch, 2, "a") == (Outcome.CANCEL, 3)
    assert await _texts(store, job.id) == ["a"]


@pytest.mark.fault(34)
async def test_append_reports_the_deadline(store: JobStore, redis: Redis, keys: Keys) -> None:
    """The holder learns that the deadline has passed, also by an append of nothing."""
    job = await submit(store)
    epoch = await start(store, job.id)
    assert await append(store, job.id, epoch, 2) == (Outcome.OK, 2)
    await redis.hset(keys.job(job.id).record, "deadline_ms", "1")  # type: ignore[misc]
    assert await append(store, job.id, epoch, 2) == (Outcome.EXPIRED, 2)


async def test_one_jobs_trouble_is_not_anothers(store: JobStore) -> None:
    """A pipeline answers each job by itself, in the order of the appends."""
    first, second = await submit(store), await submit(store)
    epochs = [await start(store, job.id) for job in (first, second)]
    payloads = make_payloads("a")
    answers = await store.append(
        [
            Append(first.id, epochs[0] + 1, 2, payloads),
            Append(second.id, epochs[1], 2, payloads),
            Append("job_x", 1, 2, payloads),
            Append(first.id, epochs[0], 7, payloads),
        ]
    )
    assert answers == [(Outcome.FENCED, 2), (Outcome.OK, 3), (Outcome.GONE, 0), (Outcome.GAP, 2)]


async def test_every_event_after_the_first_rings_the_doorbell(
    store: JobStore, redis_url: str, keys: Keys
) -> None:
    """The doorbell carries incarnation, number and payload of each event in the log, once."""
    job = await submit(store, make_job(incarnation="inc"))
    client = pubsub_client(redis_url)
    async with within(), client, client.pubsub() as pubsub:
        await pubsub.subscribe(keys.job(job.id).live)
        assert await pubsub.get_message(timeout=None)
        epoch = await start(store, job.id)
        await append(store, job.id, epoch, 2, "a:b", "c")
        await append(store, job.id, epoch, 3, "c", "d")
        await store.requeue(job.id, "w1", Retrying("drain"), lost=False)
        await store.finish(job.id, (epoch + 1, 6), BROKEN, RETENTION_MS)
        rung = [(await anext(pubsub.listen()))["data"] for _ in range(6)]
    assert rung == [b"inc:%d:%b" % entry for entry in (await store.log(job.id))[1:]]


async def test_a_server_that_lost_a_start_grants_another_epoch(
    store: JobStore, redis: Redis, keys: Keys
) -> None:
    """Both holders believe in their start, and only one of them can write."""
    job = await submit(store)
    names = (keys.job(job.id).record, keys.job(job.id).log)
    saved = [await redis.dump(name) for name in names]
    lost = await start(store, job.id, "w1")
    for name, value in zip(names, saved, strict=True):
        await redis.restore(name, RETENTION_MS, value, replace=True)

    async def is_later() -> bool:  # no server restarts within the millisecond
        return await Registry(redis, keys).now_ms() > lost

    await eventually(is_later)
    granted = await start(store, job.id, "w2")
    assert granted > lost
    assert (await append(store, job.id, lost, 2, "a"))[0] is Outcome.FENCED
    assert await append(store, job.id, granted, 2, "b") == (Outcome.OK, 3)


@dataclass
class Model:
    """What the log must hold: the accepted events, who owns it, and whether it has ended."""

    epoch: int = 0
    running: bool = False
    ended: bool = False
    accepted: list[bytes] = field(default_factory=list)

    def refusal(self, epoch: int) -> Outcome | None:
        """Return why an append under this epoch is refused, or None."""
        if epoch != self.epoch:
            return Outcome.FENCED
        return None if self.running and not self.ended else Outcome.CLOSED

    def append(self, epoch: int, n: int, payloads: tuple[bytes, ...]) -> tuple[Outcome, int]:
        """Do what append must do."""
        top = len(self.accepted)
        if refusal := self.refusal(epoch):
            return refusal, top
        if n > top:
            return Outcome.GAP, top
        self.accepted += payloads[top - n :]
        return Outcome.OK, len(self.accepted)

    def finish(self, epoch: int, n: int) -> tuple[Outcome, int]:
        """Do what finish must do."""
        top = len(self.accepted)
        if self.ended:
            return Outcome.CLOSED, top
        if epoch != self.epoch:
            return Outcome.FENCED, top
        if n != top:
            return (Outcome.GAP if n > top else Outcome.STALE), top
        self.ended = True
        self.accepted.append(encode_event(BROKEN))
        return Outcome.OK, top + 1


class TryAppend(msgspec.Struct, frozen=True):
    """Append ``count`` events at ``offset`` from the top, ``age`` epochs behind the holder's."""

    age: int
    offset: int
    count: int


class TryFinish(msgspec.Struct, frozen=True):
    """Finish at ``offset`` from the top, ``age`` epochs behind the holder's."""

    age: int
    offset: int


class Move(msgspec.Struct, frozen=True):
    """Another worker takes the job, or it waits again."""

    takes: bool


Operation = TryAppend | TryFinish | Move

ages = st.sampled_from([0, 0, 0, 1, 2])
operations = st.one_of(
    st.builds(TryAppend, ages, st.sampled_from([0, 0, -3, -1, 1, 2]), st.integers(0, 4)),
    st.builds(Move, st.booleans()),
    st.builds(TryFinish, ages, st.sampled_from([-1, 0, 1])),
)


async def _apply(store: JobStore, job_id: str, model: Model, operation: Operation) -> None:
    top = len(model.accepted)
    match operation:
        case TryAppend(age, offset, count):
            # Fresh text each time: an event that is written twice cannot pass for the first one.
            payloads = make_payloads(*(f"{next(_serial)}" for _ in range(count)))
            epoch, n = model.epoch - age, max(0, top + offset)
            [answer] = await store.append([Append(job_id, epoch, n, payloads)])
            assert answer == model.append(epoch, n, payloads)
        case TryFinish(age, offset):
            position = (model.epoch - age, top + offset)
            answer = await store.finish(job_id, position, BROKEN, RETENTION_MS)
            assert answer == model.finish(*position)
        case Move(takes=True) if not model.ended:
            epoch = await start(store, job_id, f"w{model.epoch}")
            assert epoch > model.epoch
            model.epoch, model.running = epoch, True
            model.accepted.append((await store.log(job_id))[-1][1])
        case Move(takes=False) if model.running and not model.ended:
            retrying = Retrying("worker_lost")
            owner = (await read(store, job_id)).owner
            assert await store.requeue(job_id, owner, retrying, lost=True) is Outcome.OK
            model.epoch, model.running = model.epoch + 1, False
            model.accepted.append(encode_event(retrying))


_serial = itertools.count()


@pytest.mark.fault(39)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(operations, max_size=25))
async def test_the_log_is_the_accepted_sequence(
    store: JobStore, operations: list[Operation]
) -> None:
    """Whatever holders and zombies send, the log is what was accepted, with at most one end."""
    job = await submit(store)
    model = Model(accepted=[payload for _, payload in await store.log(job.id)])
    for operation in operations:
        await _apply(store, job.id, model, operation)
    assert await store.log(job.id) == list(enumerate(model.accepted))
    ends = [n for n, payload in enumerate(model.accepted) if is_terminal(decode_event(payload))]
    assert ends == ([len(model.accepted) - 1] if model.ended else [])


@pytest.mark.control(39)
@pytest.mark.parametrize(
    ("check", "instead"),
    [
        ("if job[1] ~= ARGV[2] then return { 'FENCED', next } end\n", ""),
        ("if n > next then return { 'GAP', next } end\n", ""),
        ("for i = 4 + next - n, #ARGV do", "for i = 4, #ARGV do"),
    ],
    ids=["fence", "gap", "repeat"],
)
async def test_a_script_without_a_check_is_found(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, check: str, instead: str
) -> None:
    """The property bites: each check of the append is needed for it."""
    cut_for_now(monkeypatch, job_store._APPEND, check, instead)
    with pytest.raises(AssertionError):
        await _tell_wrong_things(store)


async def _tell_wrong_things(store: JobStore) -> None:
    """Apply operations that a sound store refuses, and compare it with the model."""
    job = await submit(store)
    model = Model(accepted=[payload for _, payload in await store.log(job.id)])
    zombie, early, again = TryAppend(1, 0, 1), TryAppend(0, 2, 1), TryAppend(0, -1, 2)
    for operation in (Move(takes=True), early, TryAppend(0, 0, 2), again, Move(takes=True), zombie):
        await _apply(store, job.id, model, operation)
    assert await store.log(job.id) == list(enumerate(model.accepted))


def _ending(job_id: str, epoch: int, n: int, *texts: str) -> Append:
    return Append(job_id, epoch, n, make_payloads(*texts), BROKEN, RETENTION_MS)


async def test_the_end_comes_behind_the_last_events(store: JobStore) -> None:
    """In one round trip; asked again, the job has ended."""
    job = await submit(store)
    epoch = await start(store, job.id)
    assert await store.append([_ending(job.id, epoch, 2, "a", "b")]) == [(Outcome.OK, 5)]
    assert await store.append([_ending(job.id, epoch, 2, "a", "b")]) == [(Outcome.CLOSED, 5)]
    events = [decode_event(payload) for _, payload in await store.log(job.id)]
    assert [is_terminal(event) for event in events] == [False] * 4 + [True]


async def test_an_end_alone_is_written(store: JobStore) -> None:
    """There may be nothing left to say before it."""
    job = await submit(store)
    epoch = await start(store, job.id)
    assert await store.append([_ending(job.id, epoch, 2)]) == [(Outcome.OK, 3)]


async def test_no_end_where_the_events_before_it_are_refused(store: JobStore) -> None:
    """Neither after a gap nor under another's epoch; the neighbour's end is written."""
    jobs = [await submit(store) for _ in range(3)]
    gap, zombie, good = [(job.id, await start(store, job.id)) for job in jobs]
    found = await store.append(
        [
            _ending(gap[0], gap[1], 3, "b"),
            _ending(zombie[0], zombie[1] - 1, 2, "a"),
            _ending(good[0], good[1], 2, "a"),
        ]
    )
    assert found == [(Outcome.GAP, 2), (Outcome.FENCED, 2), (Outcome.OK, 4)]
    assert [len(await store.log(job.id)) for job in jobs] == [2, 2, 4]


@pytest.mark.fault(19)
async def test_an_append_that_was_forgotten_holds_up_its_end(
    store: JobStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server knows one of both scripts: the end says that something is missing, and waits."""
    job = await submit(store)
    epoch = await start(store, job.id)
    await redis.script_load(job_store._FINISH.text)
    monkeypatch.setattr(job_store._APPEND, "sha", "0" * 40)
    ending = _ending(job.id, epoch, 2, "a", "b")
    outcomes = [await store.append([ending]) for _ in range(3)]
    assert outcomes == [[(Outcome.GAP, 2)], [(Outcome.OK, 5)], [(Outcome.CLOSED, 5)]]
    assert await _texts(store, job.id) == ["a", "b"]
