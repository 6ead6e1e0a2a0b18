"""Answers: their ends, and their rebuilding from what was logged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.emitted import Emitted
from common.jobs import JobSpec
from tests.worker.engine.recorder import EOS, FRESH, LENGTH, STOP
from worker.engine.answer import Answer, TakeoverMismatch
from worker.engine.text import byte_step

EOS_ID = 256


def _make_spec(max_tokens: int = 1000, stop: tuple[str, ...] = ()) -> JobSpec:
    return JobSpec(model="m", max_tokens=max_tokens, prompt="p", stop=stop)


def _make_answer(spec: JobSpec, emitted: Emitted = FRESH) -> Answer:
    return Answer(spec, byte_step(), frozenset({EOS_ID}), emitted)


specs = st.builds(
    _make_spec,
    max_tokens=st.integers(0, 60),
    stop=st.lists(st.text("abé水", min_size=1, max_size=4), max_size=3).map(tuple),
)
id_lists = st.tuples(st.text("aabé水🌊", max_size=20), st.booleans()).map(
    lambda pair: [*pair[0].encode(), *([EOS_ID] if pair[1] else [])]
)


@given(specs, id_lists, st.integers(0, 90), st.integers(0, 90))
def test_rebuilt_at_any_cut_it_goes_on_the_same(
    spec: JobSpec, ids: list[int], cut: int, text_cut: int
) -> None:
    """After any logged IDs, and any part of their text, the rest is what was missing."""
    whole = _make_answer(spec)
    full = whole.take(ids)
    before = _make_answer(spec).take(ids[:cut])
    logged = Emitted(before.ids, before.text[:text_cut])
    rebuilt = _make_answer(spec, logged)
    after = rebuilt.take(ids[len(logged.ids) :])
    assert logged.ids + after.ids == full.ids
    assert logged.text + after.text == full.text
    assert (rebuilt.end, rebuilt.num_ids) == (whole.end, whole.num_ids)


@given(specs, id_lists)
def test_portions_do_not_matter(spec: JobSpec, ids: list[int]) -> None:
    """One by one the IDs give the same answer as all at once."""
    whole, single = _make_answer(spec), _make_answer(spec)
    deltas = [single.take([token_id]) for token_id in ids]
    delta = whole.take(ids)
    assert "".join(part.text for part in deltas) == delta.text
    assert sum((part.ids for part in deltas), ()) == delta.ids
    assert single.end == whole.end


def test_the_end_of_sequence_ends_it() -> None:
    """The EOS is an ID of the answer without text; what follows is dropped."""
    answer = _make_answer(_make_spec())
    assert answer.take([104, EOS_ID, 105]).ids == (104, EOS_ID)
    assert answer.end == EOS


def test_the_last_allowed_token_ends_it() -> None:
    """All generated tokens count, those of earlier attempts too."""
    answer = _make_answer(_make_spec(max_tokens=3), Emitted((104, 105), "hi"))
    assert answer.end is None
    assert answer.take([33, 33]).ids == (33,)
    assert answer.end == LENGTH


def test_a_stop_string_ends_it() -> None:
    """The end by a stop string is not the model's own."""
    answer = _make_answer(_make_spec(stop=("lo",)))
    assert answer.take(b"hello you").text == "hel"
    assert answer.end == STOP


def test_an_end_releases_what_a_stop_string_held_back() -> None:
    """At EOS and at the length limit no stop string can come any more."""
    answer = _make_answer(_make_spec(stop=("hat",)))
    assert answer.take(b"ah").text == "a"
    assert answer.take([EOS_ID]).text == "h"


def test_no_tokens_allowed_is_an_end() -> None:
    """An answer of zero tokens has ended before it began."""
    assert _make_answer(_make_spec(max_tokens=0)).end == LENGTH


def test_text_released_before_the_lost_end_is_not_repeated() -> None:
    """An attempt that logged its held text but not its end gets its end only."""
    logged = Emitted((*b"ah", EOS_ID), "ah")
    answer = _make_answer(_make_spec(stop=("hat",)), logged)
    assert answer.take().text == ""
    assert answer.end == EOS


def test_held_text_that_was_sent_is_not_sent_again() -> None:
    """Followers who have already seen held-back text get only what comes after it."""
    answer = _make_answer(_make_spec(stop=("hat",)), Emitted(tuple(b"ah"), "ah"))
    assert answer.take(b"i").text == "i"


@pytest.mark.parametrize("text", ["ho", "hi!", "i"])
def test_other_text_than_logged_is_a_mismatch(text: str) -> None:
    """Logged text that the logged IDs do not start with cannot be continued."""
    with pytest.raises(TakeoverMismatch):
        _make_answer(_make_spec(), Emitted(tuple(b"hi"), text))
