"""Answers: their ends, and their rebuilding from what was logged."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.emitted import Emitted
from common.events import TokenLogprob
from common.jobs import JobSpec
from tests.worker.engine.recorder import EOS, FRESH, LENGTH, STOP
from worker.engine.answer import Answer, TakeoverMismatch
from worker.engine.text import byte_step

EOS_ID = 256


def _make_spec(
    max_tokens: int = 1000,
    stop: tuple[str, ...] = (),
    stop_token_ids: tuple[int, ...] = (),
    min_tokens: int = 0,
    ignore_eos: bool = False,
) -> JobSpec:
    return JobSpec(
        model="m",
        max_tokens=max_tokens,
        prompt="p",
        stop=stop,
        stop_token_ids=stop_token_ids,
        min_tokens=min_tokens,
        ignore_eos=ignore_eos,
    )


def _make_answer(spec: JobSpec, emitted: Emitted = FRESH, choice: int = 0) -> Answer:
    return Answer(spec, byte_step(), frozenset({EOS_ID}), emitted, choice)


specs = st.builds(
    _make_spec,
    max_tokens=st.integers(0, 60),
    stop=st.lists(st.text("abé水", min_size=1, max_size=4), max_size=3).map(tuple),
    stop_token_ids=st.lists(st.sampled_from([*b"ab", 300]), max_size=2).map(tuple),
    min_tokens=st.just(0) | st.integers(0, 60),
    ignore_eos=st.booleans(),
)
_pieces = st.text("aabé水🌊", max_size=20).map(lambda text: list(text.encode()))
id_lists = st.lists(
    _pieces | st.sampled_from([EOS_ID, 300]).map(lambda token_id: [token_id]), max_size=4
).map(lambda lists: list(itertools.chain(*lists)))


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


@given(specs, id_lists)
def test_of_the_first_tokens_none_ends_it(spec: JobSpec, ids: list[int]) -> None:
    """Before ``min_tokens`` only the length is an end."""
    answer = _make_answer(spec)
    answer.take(ids[: spec.min_tokens])
    assert answer.end in (None, LENGTH)


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


def test_a_stop_token_ends_it_without_its_text() -> None:
    """It is an ID of the answer; the end is not the model's own."""
    answer = _make_answer(_make_spec(stop_token_ids=(10,)))
    delta = answer.take(b"hi\nyou")
    assert (delta.ids, delta.text, answer.end) == (tuple(b"hi\n"), "hi", STOP)


def test_an_eos_that_is_ignored_is_a_token() -> None:
    """It counts and says nothing; as a stop token it still ends the answer."""
    ids = (104, EOS_ID, 105)
    answer = _make_answer(_make_spec(max_tokens=3, ignore_eos=True))
    assert (answer.take(ids).text, answer.end) == ("hi", LENGTH)
    answer = _make_answer(_make_spec(ignore_eos=True, stop_token_ids=(EOS_ID,)))
    assert (answer.take(ids).text, answer.end) == ("h", STOP)


def test_ends_that_come_too_early_are_text() -> None:
    """A stop string among the first ``min_tokens`` stays, the same string behind them ends it."""
    answer = _make_answer(_make_spec(stop=("lo", "lol"), min_tokens=5))
    assert answer.take(b"hello you, lo!").text == "hello you, "
    assert answer.end == STOP


def test_a_stop_string_may_begin_among_the_first_tokens() -> None:
    """The token that completes it counts."""
    answer = _make_answer(_make_spec(stop=("lo",), min_tokens=4))
    assert answer.take(b"hello you").text == "hel"


def test_the_end_of_sequence_may_follow_the_first_tokens() -> None:
    """``min_tokens`` tokens and an EOS are an answer."""
    answer = _make_answer(_make_spec(min_tokens=2))
    assert answer.take([104, 105, EOS_ID]).ids == (104, 105, EOS_ID)
    assert answer.end == EOS


def test_logprobs_go_with_their_ids() -> None:
    """Those of tokens behind the end are dropped like the tokens."""
    logprobs = [TokenLogprob(token_id, chr(token_id), -1.0) for token_id in b"hi!"]
    delta = _make_answer(_make_spec(max_tokens=2), choice=3).take(b"hi!", logprobs)
    assert (delta.logprobs, delta.choice) == (tuple(logprobs[:2]), 3)
