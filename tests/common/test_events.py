"""Events on the wire."""

import typing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.events import (
    STATE_OF_END,
    Accepted,
    Alternative,
    Cancelled,
    ChoiceEnd,
    Completed,
    Ended,
    ErrorInfo,
    Event,
    Expired,
    Failed,
    Reset,
    Retrying,
    Started,
    Timings,
    TokenLogprob,
    Tokens,
    Usage,
    decode_event,
    encode_event,
    is_terminal,
)
from common.jobs import TERMINAL, FinishReason

KINDS: tuple[type[Event], ...] = typing.get_args(Event)
ENDS: tuple[type[Ended], ...] = typing.get_args(Ended)

_NO_USAGE = (
    "a5757361676583ad70726f6d70745f746f6b656e7300b1636f6d706c6574696f6e5f746f6b65"
    "6e7300ad6361636865645f746f6b656e7300"
)
_NO_TIMINGS = (
    "a774696d696e677384a771756575655f73cb0000000000000000a970726566696c6c5f73cb00"
    "00000000000000ad66697273745f746f6b656e5f73cb0000000000000000a86465636f64655f"
    "73cb0000000000000000"
)

# What release 0.1.0 wrote. Never edit a line: later releases must go on reading these.
RELEASE_0_1_0: dict[str, Event] = {
    "83a46b696e64a86163636570746564a36a6f62a56a6f625f31a56d6f64656ca474696e79": Accepted(
        "job_1", "tiny"
    ),
    "83a46b696e64a773746172746564a6776f726b6572a3772d31a7617474656d707402": Started("w-1", 2),
    "84a46b696e64a6746f6b656e73a5696e64657803a36964739207ce00011170a474657874a36ec3a9": Tokens(
        3, (7, 70_000), "né"
    ),
    "82a46b696e64a87265747279696e67a6726561736f6eab776f726b65725f6c6f7374": Retrying("worker_lost"),
    "82a46b696e64a57265736574a6726561736f6ead6d6f64656c5f6368616e676564": Reset("model_changed"),
    "88a46b696e64a9636f6d706c65746564ad66696e6973685f726561736f6ea473746f70a66973"
    "5f656f73c3a5757361676583ad70726f6d70745f746f6b656e7305b1636f6d706c6574696f6e"
    "5f746f6b656e7302ad6361636865645f746f6b656e7301a774696d696e677384a77175657565"
    "5f73cb3fe0000000000000a970726566696c6c5f73cb3fd0000000000000ad66697273745f74"
    "6f6b656e5f73cb3fe8000000000000a86465636f64655f73cb3ff8000000000000a861747465"
    "6d70747301a6776f726b6572a3772d31a56572726f72c0": Completed(
        FinishReason.STOP,
        is_eos=True,
        usage=Usage(5, 2, 1),
        timings=Timings(0.5, 0.25, 0.75, 1.5),
        attempts=1,
        worker="w-1",
    ),
    "88a46b696e64a66661696c6564ad66696e6973685f726561736f6ea56572726f72a669735f65"
    f"6f73c2{_NO_USAGE}{_NO_TIMINGS}a8617474656d70747303a6776f726b6572a0a5657272"
    "6f7282a474797065ab776f726b65722d6c6f7374a664657461696cb05375626d697420697420"
    "616761696e2e": Failed(
        FinishReason.ERROR, attempts=3, error=ErrorInfo("worker-lost", "Submit it again.")
    ),
    "88a46b696e64a963616e63656c6c6564ad66696e6973685f726561736f6ea963616e63656c6c"
    f"6564a669735f656f73c2{_NO_USAGE}{_NO_TIMINGS}a8617474656d70747301a6776f726b65"
    "72a3772d31a56572726f72c0": Cancelled(FinishReason.CANCELLED, attempts=1, worker="w-1"),
    "88a46b696e64a765787069726564ad66696e6973685f726561736f6ea765787069726564a669"
    f"735f656f73c2{_NO_USAGE}{_NO_TIMINGS}a8617474656d70747300a6776f726b6572a0a565"
    "72726f72c0": Expired(FinishReason.EXPIRED),
}

counts = st.integers(0, 2**53)
seconds = st.floats(0, 1e9)
alternatives = st.builds(Alternative, counts, st.text(), st.floats(-1e3, 0))
logprobs = st.builds(
    TokenLogprob,
    counts,
    st.text(),
    st.floats(-1e3, 0),
    st.lists(alternatives, max_size=2).map(tuple),
)
ends = [
    st.builds(
        kind,
        st.sampled_from(FinishReason),
        is_eos=st.booleans(),
        usage=st.builds(Usage, counts, counts, counts),
        timings=st.builds(Timings, seconds, seconds, seconds, seconds),
        attempts=counts,
        worker=st.text(),
        error=st.none() | st.builds(ErrorInfo, st.text(), st.text()),
        choices=st.lists(
            st.builds(ChoiceEnd, counts, st.sampled_from(FinishReason), st.booleans()), max_size=2
        ).map(tuple),
        prompt_version=counts,
    )
    for kind in ENDS
]
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Accepted, st.text(), st.text()),
    st.builds(Started, st.text(), counts, st.sampled_from(["", "hit", "partial", "miss"])),
    st.builds(
        Tokens,
        counts,
        st.lists(counts, max_size=5).map(tuple),
        st.text(),
        counts,
        st.lists(logprobs, max_size=2).map(tuple),
        st.booleans(),
    ),
    st.builds(Retrying, st.text()),
    st.builds(Reset, st.text()),
    *ends,
)


@given(events)
def test_an_event_survives_the_wire(event: Event) -> None:
    """Every kind decodes to the event that was encoded."""
    assert decode_event(encode_event(event)) == event


@pytest.mark.parametrize(("data", "event"), RELEASE_0_1_0.items())
def test_release_0_1_0_is_still_read(data: str, event: Event) -> None:
    """A log that an older worker wrote is read by a newer gateway."""
    assert decode_event(bytes.fromhex(data)) == event


def test_every_kind_of_event_is_pinned() -> None:
    """A new kind needs its bytes in the list above."""
    assert {type(event) for event in RELEASE_0_1_0.values()} == set(KINDS)


@pytest.mark.fault(7)
@given(events)
def test_a_field_of_a_newer_release_is_ignored(event: Event) -> None:
    """A gateway reads the logs of newer workers while the fleet is updated."""
    newer = msgspec.to_builtins(event) | {"of_tomorrow": [[-0.5]]}
    assert decode_event(msgspec.msgpack.encode(newer)) == event


@pytest.mark.parametrize(("data", "event"), RELEASE_0_1_0.items())
def test_release_0_1_0_reads_what_uses_nothing_new(data: str, event: Event) -> None:
    """An older gateway reads a newer worker's log: ends have more fields, the rest is the same."""
    if is_terminal(event):
        new = msgspec.msgpack.decode(encode_event(event))
        assert new.items() >= msgspec.msgpack.decode(bytes.fromhex(data)).items()
    else:
        assert encode_event(event) == bytes.fromhex(data)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", b"\x81\xa4kind\xa5other"])
def test_a_damaged_event_raises_a_decode_error(data: bytes) -> None:
    """Damaged data and an unknown kind are a ``DecodeError`` and nothing else."""
    with pytest.raises(msgspec.DecodeError):
        decode_event(data)


def test_the_kind_is_the_tag_on_the_wire() -> None:
    """``kind`` is the word that every door shows."""
    assert Tokens(0, (1,), "a").kind == "tokens"
    assert msgspec.msgpack.decode(encode_event(Reset("x")))["kind"] == "reset"


def test_exactly_the_ends_are_terminal() -> None:
    """The kinds that end a log are those that have a final state, one each."""
    terminal = {type(event) for event in RELEASE_0_1_0.values() if is_terminal(event)}
    assert terminal == set(ENDS) == set(STATE_OF_END)
    assert set(STATE_OF_END.values()) == TERMINAL
