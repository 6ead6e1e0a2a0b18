"""Identifiers."""

import re
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.names import (
    MAX_NAME_LEN,
    idempotent_job_id,
    is_job_id,
    is_name,
    random_job_id,
    worker_id,
)

SECRET = b"secret"


@pytest.mark.parametrize("name", ["a", "SmolLM2-135M-Instruct", "org/model:7b", "me@example.org"])
def test_usual_names_are_names(name: str) -> None:
    """Hub IDs, tags and addresses may name things."""
    assert is_name(name)


@given(st.text(max_size=20))
@example("a}b")
@example("{m:x}")
@example("a b")
@example("a\n")
@example("a\x00")
@example("à")
@example("-rf")
@example("")
def test_no_name_can_forge_a_key(text: str) -> None:
    """Braces, blanks, control characters and a leading sign never pass."""
    harmless = bool(text) and text[0] not in "._/:@+-"
    harmless = harmless and all(c.isascii() and (c.isalnum() or c in "._/:@+-") for c in text)
    assert is_name(text) == harmless


def test_a_name_is_bounded() -> None:
    """The longest name passes and one more character does not."""
    assert is_name("a" * MAX_NAME_LEN)
    assert not is_name("a" * (MAX_NAME_LEN + 1))


def test_job_ids_are_random_and_have_their_shape() -> None:
    """Two jobs have two IDs, and both look like job IDs."""
    ids = {random_job_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(map(is_job_id, ids))


@pytest.mark.parametrize("text", ["job_", "job_" + "0" * 31, "job_" + "0" * 33, "job_" + "G" * 32])
def test_other_texts_are_no_job_ids(text: str) -> None:
    """Only ``job_`` and 32 hexadecimal digits are a job ID."""
    assert not is_job_id(text)
    assert not is_job_id(f"job_{'0' * 32}\n")


pairs = st.tuples(st.text(), st.text())


@given(pairs, pairs)
@example(("a", "b:c"), ("a:b", "c"))
@example(("1:a", "b"), ("1", "a:b"))
def test_an_idempotency_key_gives_one_job_id(one: tuple[str, str], other: tuple[str, str]) -> None:
    """The same tenant and key give the same ID on any gateway, and no other pair does."""
    first, second = idempotent_job_id(SECRET, *one), idempotent_job_id(SECRET, *other)
    assert is_job_id(first)
    assert (first == second) == (one == other)


def test_an_idempotent_job_id_needs_the_secret() -> None:
    """Who does not know the fleet's secret cannot compute a job's ID."""
    assert idempotent_job_id(SECRET, "t", "k") != idempotent_job_id(b"guess", "t", "k")


@pytest.mark.fault(8)
@pytest.mark.parametrize("host", ["box", "gpu-1.example.org", "_übung", "", "x" * 64])
def test_a_worker_id_is_a_name_on_any_host(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine is called, its workers' IDs can be keys, and are fresh each time."""
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    first, second = worker_id(), worker_id()
    assert is_name(first)
    assert re.fullmatch(r"[A-Za-z0-9-]+", first)
    assert first != second
