"""The text stream against whole strings."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.text import TextStream, byte_step

# Few letters, of one to four bytes, so that stop strings really occur and overlap.
texts = st.text(alphabet="aabbcé水🌊", max_size=40)
stops = st.lists(st.text(alphabet="aabbcé水🌊", min_size=1, max_size=5), max_size=4)


def _cut_at_first_stop(text: str, stop: list[str]) -> str:
    """The definition, written as a search over all prefixes."""
    for end in range(1, len(text) + 1):
        matches = [s for s in stop if text[:end].endswith(s)]
        if matches:
            return text[: end - max(map(len, matches))]
    return text


def _tokens_of(text: str, cuts: set[int]) -> list[str]:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    return [text[start:end] for start, end in itertools.pairwise(edges)]


@given(texts, stops)
def test_bytes_give_the_text_before_the_first_stop(text: str, stop: list[str]) -> None:
    """All pieces together are the text up to the first stop string, whole characters each."""
    stream = TextStream(byte_step(), stop)
    pieces = [stream.push(byte) for byte in text.encode()]
    assert "".join([*pieces, stream.flush()]) == _cut_at_first_stop(text, stop)
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.fault(31)
@given(texts, stops, st.sets(st.integers(1, 40)))
def test_any_split_into_tokens_gives_the_same_text(
    text: str, stop: list[str], cuts: set[int]
) -> None:
    """How tokens cut the text does not change what is released or whether it stopped."""
    tokens = _tokens_of(text, cuts)
    stream = TextStream(lambda token_id: tokens[token_id], stop)
    pieces = [stream.push(token_id) for token_id in range(len(tokens))]
    assert "".join([*pieces, stream.flush()]) == _cut_at_first_stop(text, stop)
    assert stream.stopped == any(s in text for s in stop)


@given(texts, stops)
def test_nothing_is_held_back_without_need(text: str, stop: list[str]) -> None:
    """The held text is the start of a stop string, and no longer end of the text is."""
    stream = TextStream(byte_step(), stop)
    for byte in text.encode():
        stream.push(byte)
    if not stream.stopped:
        starts = {s[:n] for s in stop for n in range(1, len(s))}
        tails = [text[at:] for at in range(len(text)) if text[at:] in starts]
        assert stream.held == (tails[0] if tails else "")


def test_an_incomplete_character_is_never_flushed() -> None:
    """Two of the three bytes of a character leave no trace in the text."""
    stream = TextStream(byte_step(), ["zz"])
    assert [stream.push(byte) for byte in b"z" + "水".encode()[:2]] == ["", "", ""]
    assert stream.flush() == "z"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [(["bcd", "c"], "ab"), (["c", "abc"], ""), (["cd", "bcd"], "a"), (["", "d"], "abc")],
)
def test_the_first_complete_stop_string_counts(stop: list[str], expected: str) -> None:
    """The earliest end wins, then the longest; an empty one matches nothing."""
    stream = TextStream(byte_step(), stop)
    assert "".join(map(stream.push, b"abcde")) == expected
    assert stream.stopped
    assert stream.push(ord("x")) == ""


def test_a_special_token_has_no_text() -> None:
    """IDs above the bytes are skipped."""
    stream = TextStream(byte_step())
    assert [stream.push(token_id) for token_id in (104, 256, 105)] == ["h", "", "i"]
