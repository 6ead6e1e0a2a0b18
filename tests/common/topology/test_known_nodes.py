"""Whom a client of a cluster asks, and when it asks anew."""

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from common.topology.known_nodes import KnownNodes, nobody_answers
from common.topology.slots import Range, SlotMap

A, B, C = ("a", 1), ("b", 2), ("c", 3)


def known() -> KnownNodes:
    """Return what a client knows that has asked once: A owns the lower half, B nothing."""
    found = KnownNodes([C])
    found.learn(SlotMap([Range(0, 99, A, (B,))]))
    return found


def test_it_begins_with_its_seeds() -> None:
    """And doubts what it knows, which is nothing."""
    fresh = KnownNodes([A, B])
    assert (fresh.to_ask(), fresh.is_doubtful) == ([A, B], True)


def test_who_did_not_answer_is_asked_last() -> None:
    """Until the next map: then everybody counts as living again."""
    nodes = known()
    assert not nodes.is_doubtful
    nodes.suspect(A)
    assert (nodes.to_ask(), nodes.is_doubtful) == ([B, C, A], True)
    nodes.learn(nodes.map)
    assert nodes.to_ask() == [A, B, C]


def test_a_slot_that_nobody_owns_is_a_reason_to_ask() -> None:
    """The command fails, and the next one asks first."""
    nodes = known()
    assert nodes.owner(7) == A
    with pytest.raises(RedisConnectionError, match="slot 100"):
        nodes.owner(100)
    assert nodes.is_doubtful


def test_the_error_says_how_many_were_asked() -> None:
    """And why the last one did not answer."""
    assert str(nobody_answers([A, B], "")) == "none of 2 cluster nodes answers: no reply in time"
