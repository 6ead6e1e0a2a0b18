"""What waits for the log."""

from common.emitted import NOTHING, Emitted
from common.events import TokenLogprob, Tokens
from common.runs import MAX_SIZE
from worker.engine.protocol import Delta
from worker.pending import Pending


def test_nothing_waits_for_nothing() -> None:
    """A delta without IDs and text makes no event."""
    pending = Pending((NOTHING,))
    pending.take(Delta((), ""))
    assert not pending
    assert pending.drain() == []


def test_what_is_drained_does_not_wait_any_more() -> None:
    """The tokens still count."""
    pending = Pending((Emitted((1, 2)), Emitted((3,))))
    pending.take(Delta((4,), "a", choice=1))
    assert pending
    assert pending.drain() == [Tokens(1, (4,), "a", choice=1)]
    assert (bool(pending), pending.num_ids) == (False, 4)


def test_logprobs_stay_with_their_ids() -> None:
    """They are joined as the IDs are."""
    pending = Pending((NOTHING,))
    entries = [TokenLogprob(token_id, "x", -1.0) for token_id in range(2)]
    for entry in entries:
        pending.take(Delta((entry.id,), "x", logprobs=(entry,)))
    assert pending.drain() == [Tokens(0, (0, 1), "xx", logprobs=tuple(entries))]


def test_a_long_prompt_is_echoed_in_parts() -> None:
    """No event is larger than a client takes."""
    pending = Pending((NOTHING,))
    pending.take(Delta((), "x" * (2 * MAX_SIZE), echo=True))
    events = pending.drain()
    assert "".join(tokens.text for tokens in events) == "x" * (2 * MAX_SIZE)
    assert all(tokens.echo and len(tokens.text) <= MAX_SIZE for tokens in events)


def test_the_logprobs_of_the_prompt_are_logged_once() -> None:
    """A second attempt scores the whole prompt again; what the log has is left out."""
    entries = tuple(TokenLogprob(token_id, "x", -1.0) for token_id in range(200))
    pending = Pending((Emitted(echo="Once", num_echo_logprobs=3),))
    pending.take(Delta((), "", logprobs=entries[:2], echo=True))
    assert not pending
    pending.take(Delta((), "", logprobs=entries[2:], echo=True))
    assert pending.drain() == [Tokens(0, (), "", logprobs=entries[3:], echo=True)]


def test_a_long_outage_makes_several_events() -> None:
    """What piled up while Redis was away is cut too, and the indexes fit."""
    pending = Pending((NOTHING,))
    for token_id in range(MAX_SIZE // 32):
        pending.take(Delta((token_id,), "x"))
    events = pending.drain()
    assert len(events) > 1
    assert [tokens.index for tokens in events] == [tokens.ids[0] for tokens in events]
