"""The Durable Streams dialect, alone."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.events import Event, Tokens
from gateway.dialects import durable_stream
from gateway.dialects.durable_stream import Place
from tests.gateway.player import DONE

POSITIONS = st.integers(0, 10**16 - 1)


@given(POSITIONS, POSITIONS)
def test_offsets_sort_as_the_events_do(one: int, other: int) -> None:
    """And each leads back to its place."""
    texts = [durable_stream.write_offset(position) for position in (one, other)]
    assert [durable_stream.read_offset(text) for text in texts] == [one, other]
    assert (texts[0] < texts[1]) == (one < other)
    assert not set(texts) & {"-1", "now"}


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "now", "1" * 17, "²" * 16, " " * 16, "-" + 15 * "1"]
)
def test_anything_else_is_no_offset(text: str) -> None:
    """Also what Python would take for a number."""
    assert durable_stream.read_offset(text) is None


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_a_frame_is_one_line_of_json(texts: list[str]) -> None:
    """No token can end it or begin another one."""
    events: list[Event] = [Tokens(n, (n,), text) for n, text in enumerate(texts)]
    frame = durable_stream.data_frame([*events, DONE])
    assert frame.count(b"\n") == 3
    assert b"\r" not in frame
    data = frame.removeprefix(b"event: data\ndata:").removesuffix(b"\n\n")
    assert msgspec.json.decode(data, type=list[Event]) == [*events, DONE]


def test_a_place_is_told_in_two_ways() -> None:
    """As headers and as a control event; a closed stream has no cursor to go on with."""
    place = Place(7, is_up_to_date=True, is_closed=False)
    assert durable_stream.headers(place) == {
        "Stream-Next-Offset": "0000000000000007",
        "Stream-Up-To-Date": "true",
    }
    assert durable_stream.control_frame(place, "3") == (
        b'event: control\ndata:{"streamNextOffset":"0000000000000007","streamCursor":"3",'
        b'"upToDate":true}\n\n'
    )
    closed = Place(7, is_up_to_date=True, is_closed=True)
    assert durable_stream.headers(closed)["Stream-Closed"] == "true"
    assert b"streamCursor" not in durable_stream.control_frame(closed, "3")
    behind = Place(7, is_up_to_date=False, is_closed=False)
    assert list(durable_stream.headers(behind)) == ["Stream-Next-Offset"]


def test_a_cursor_never_repeats() -> None:
    """Time moves it on; one that is as late already is moved by the jitter."""
    now_s = durable_stream._CURSOR_EPOCH_S + 65.0
    assert durable_stream.next_cursor(None, now_s, 5) == "3"
    assert durable_stream.next_cursor("2", now_s, 5) == "3"
    assert durable_stream.next_cursor("3", now_s, 5) == "8"
    assert durable_stream.next_cursor("100", now_s, 5) == "105"
    for nonsense in ("", "-1", "x", "9" * 30, "²"):
        assert durable_stream.next_cursor(nonsense, now_s, 5) == "3"
