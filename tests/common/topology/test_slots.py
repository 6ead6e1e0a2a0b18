"""Which node of a cluster a command goes to."""

import pytest
from redis.crc import key_slot

from common.topology.slots import FIRST_SLOT, Range, SlotMap, read_slot_map, slot_of, slots_of

A, B, C, REPLICA = ("a", 1), ("b", 2), ("c", 3), ("r", 4)


def test_every_slot_has_the_owner_that_was_told() -> None:
    """Also at the ends of the ranges; a hole belongs to nobody."""
    known = SlotMap([Range(100, 199, B, ()), Range(0, 49, A, (REPLICA,)), Range(200, 200, A, ())])
    owners = {0: A, 49: A, 50: None, 99: None, 100: B, 199: B, 200: A, 201: None, 16_383: None}
    assert {slot: known.owner(slot) for slot in owners} == owners
    assert known.primaries == (A, B)
    assert known.nodes == (A, B, REPLICA)


def test_nobody_owns_anything_before_somebody_was_asked() -> None:
    """An empty map has no owners and no nodes."""
    assert SlotMap(()).owner(0) is None
    assert SlotMap(()).nodes == ()


def test_the_reply_is_read() -> None:
    """Ports, replicas, and a node that does not know how it is called."""
    reply = [[0, 9, [b"", 1, b"id", []], [b"r", 4, b"id"]], [10, 16_383, [b"b", 2, b"id"]]]
    known = read_slot_map(reply, asked=A)
    assert (known.owner(9), known.owner(10)) == (A, B)
    assert known.nodes == (A, B, REPLICA)


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "k"), "k"),
        (("get", b"k"), "k"),
        (("XINFO GROUPS", "k"), "k"),
        (("HSET", "{k}:1", "f", "v"), "k"),
        (("EVALSHA", "sha", 2, "{k}:a", "{k}:b", "x"), "k"),
        (("EVAL", "text", "1", "k"), "k"),
        (("EVAL", "text", 0, "k"), None),
        (("TIME",), None),
        (("INFO", "server"), None),
        (("CONFIG GET", "maxmemory-policy"), None),
        (("PUBLISH", "channel", "x"), None),
    ],
)
def test_the_first_key_says_where(command: tuple[object, ...], key: str | None) -> None:
    """Scripts have it behind their number of keys; some commands have none."""
    assert slot_of(command) == (None if key is None else key_slot(key.encode()))


def test_a_command_without_a_key_goes_with_the_one_before_it() -> None:
    """So that the clock in a pipeline is that of the job's own shard."""
    get, time = ("GET", "k"), ("TIME",)
    slot = key_slot(b"k")
    assert slots_of([get, time]) == [slot, slot]
    assert slots_of([time, get]) == [slot, slot]
    assert slots_of([time]) == [FIRST_SLOT]
