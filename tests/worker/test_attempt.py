"""One attempt turns engine outputs into numbered events and loses none."""

from hypothesis import given
from hypothesis import strategies as st

from common.emitted import Emitted, emitted
from common.events import (
    Accepted,
    Cancelled,
    ChoiceEnd,
    Completed,
    Event,
    Expired,
    Failed,
    Reset,
    Retrying,
    Started,
    Tokens,
    decode_event,
    encode_event,
)
from common.job_record import JobRecord, Snapshot
from common.jobs import FinishReason, JobSpec, JobState
from common.lanes import Claim
from worker.attempt import AttemptLog, Grant
from worker.engine.protocol import Delta, Finished, Output, Prefilled, Refused

ACCEPTED = Accepted("j", "tiny")
CANCELLED = Finished(FinishReason.CANCELLED)
LENGTH = Finished(FinishReason.LENGTH)
FIRST_LIFE: tuple[Event, ...] = (
    ACCEPTED,
    Started("w0", 1),
    Tokens(0, (7, 8), "ab"),
    Tokens(2, (9,), ""),
    Retrying("worker_lost"),
)


def make_log(events: tuple[Event, ...] = (ACCEPTED,), n: int = 1) -> AttemptLog:
    """Return the log of an attempt at ``n`` answers that follows these events."""
    record = JobRecord(
        id="j",
        tenant="acme",
        incarnation="i",
        spec=JobSpec("tiny", 8, n=n),
        state=JobState.QUEUED,
        epoch=1,
        next=len(events),
        attempts=1,
        losses=0,
        owner="",
        cancel=False,
        created_ms=1,
        started_ms=0,
        finished_ms=0,
        deadline_ms=2,
        retention_ms=3,
        result=None,
    )
    snapshot = Snapshot(record, tuple(map(encode_event, events)), events)
    grant = Grant(Claim("j", "normal:acme", "1-0"), snapshot, 2, 2, 1.5, "w1")
    return AttemptLog(grant, Started("w1", 2))


def take(log: AttemptLog, *outputs: Output) -> AttemptLog:
    """Give the log these outputs."""
    for output in outputs:
        log.take(output)
    return log


def flush(log: AttemptLog) -> list[Event]:
    """Return the events to send, and confirm them."""
    payloads = log.unsent()
    log.confirm(log.confirmed + len(payloads))
    return [decode_event(payload) for payload in payloads]


def test_a_fresh_attempt_has_everything_confirmed() -> None:
    """What ``start`` wrote is in Redis, so nothing is to be sent."""
    log = make_log()
    assert (log.job_id, log.grant.request_id) == ("j", "j:2")
    assert [decode_event(payload) for payload in log.payloads] == [ACCEPTED, Started("w1", 2)]
    assert (log.confirmed, log.is_sent, log.unsent()) == (2, True, ())


def test_what_is_pending_becomes_one_event() -> None:
    """Deltas between two flushes are merged, IDs without text included."""
    log = take(make_log(), Delta((1,), "a"), Delta((2,), ""), Delta((3,), "bc"))
    merged = [Tokens(0, (1, 2, 3), "abc")]
    assert (log.is_sent, flush(log), log.is_sent) == (False, merged, True)
    assert flush(log) == []


def test_text_without_a_token_is_sent_too() -> None:
    """Held-back text that an end releases belongs to no new token."""
    log = take(make_log(), Delta((1,), ""))
    flush(log)
    take(log, Delta((), "tail"))
    assert not log.is_sent
    assert flush(log) == [Tokens(1, (), "tail")]


def test_the_index_counts_over_attempts() -> None:
    """The first token of a second attempt follows the last of the first one."""
    log = take(make_log(FIRST_LIFE), Delta((10,), "c"))
    assert flush(log) == [Tokens(3, (10,), "c")]
    take(log, Delta((11, 12), "d"))
    assert flush(log) == [Tokens(4, (11, 12), "d")]


def test_the_engine_continues_after_all_that_was_logged() -> None:
    """IDs and text of earlier attempts are summed up, from the last reset on."""
    assert emitted(FIRST_LIFE) == Emitted((7, 8, 9), "ab")
    assert emitted((*FIRST_LIFE, Reset("other"), Tokens(0, (1,), "x"))) == Emitted((1,), "x")
    assert emitted((ACCEPTED,)) == Emitted()


def test_only_the_first_new_token_is_urgent() -> None:
    """It asks for a flush of its own; a prefill, the prompt's echo and later tokens do not."""
    log = take(make_log(FIRST_LIFE), Prefilled(3, 0, 0.1), Delta((), "Once", echo=True))
    urgent = [log.is_first_token]
    urgent.append(take(log, Delta((1,), "")).is_first_token)
    flush(log)
    urgent.append(log.is_first_token)
    urgent.append(take(log, Delta((2,), "b")).is_first_token)
    assert urgent == [False, True, False, False]


def test_text_without_ids_is_a_token_too() -> None:
    """A remote engine has no IDs: its first text is urgent and has its time."""
    log = take(make_log(), Delta((), "Some"))
    assert log.is_first_token
    take(log, LENGTH)
    assert log.end
    assert log.end.timings.first_token_s > 0


def test_a_server_that_lost_its_tail_gets_it_again() -> None:
    """The same payloads go out under the same numbers, those of earlier attempts included."""
    log = make_log(FIRST_LIFE)
    for n in range(4):
        take(log, Delta((n,), str(n)))
        flush(log)
    before = list(log.payloads)
    take(log, Delta((4,), "4"))
    log.confirm(3)
    assert not log.is_sent
    assert log.unsent() == (*before[3:], encode_event(Tokens(7, (4,), "4")))
    assert log.payloads[: len(before)] == before


def test_a_longer_log_than_ours_is_never_confirmed() -> None:
    """The number of confirmed events is at most the number of known ones."""
    log = make_log()
    log.confirm(99)
    assert log.confirmed == 2


def test_nothing_is_taken_after_the_end() -> None:
    """The first end stays, and a late delta is dropped."""
    log = take(make_log(), Delta((1,), "a"), LENGTH, Delta((2,), "b"), CANCELLED)
    assert flush(log) == [Tokens(0, (1,), "a")]
    assert isinstance(log.end, Completed)


def test_a_natural_end_is_completed() -> None:
    """Reason and EOS are the engine's, also where a cancel came too late."""
    log = make_log()
    log.expire = True
    take(log, Finished(FinishReason.STOP, is_eos=True))
    assert isinstance(log.end, Completed)
    assert (log.end.finish_reason, log.end.is_eos) == (FinishReason.STOP, True)


def test_a_cancelled_request_is_cancelled() -> None:
    """The end says that somebody asked for it, with the attempt and the worker."""
    log = take(make_log(), CANCELLED)
    assert isinstance(log.end, Cancelled)
    assert (log.end.finish_reason, log.end.is_eos) == (FinishReason.CANCELLED, False)
    assert (log.end.attempts, log.end.worker) == (2, "w1")


def test_a_request_cancelled_for_its_deadline_has_expired() -> None:
    """The same engine output is another end when the deadline was the cause."""
    log = make_log()
    log.expire = True
    take(log, CANCELLED)
    assert isinstance(log.end, Expired)
    assert log.end.finish_reason is FinishReason.EXPIRED


def test_a_refusal_is_a_failure_with_its_reason() -> None:
    """The engine's type and sentence reach the client."""
    log = take(make_log(), Refused("prompt-too-long", "Shorten it."))
    assert isinstance(log.end, Failed)
    assert log.end.finish_reason is FinishReason.ERROR
    assert log.end.error
    assert (log.end.error.type, log.end.error.detail) == ("prompt-too-long", "Shorten it.")


def test_usage_counts_the_tokens_of_all_attempts() -> None:
    """Flushed, pending and earlier tokens count; the prompt's are the last prefill's."""
    log = take(make_log(FIRST_LIFE), Prefilled(40, 30, 0.25), Delta((1,), "c"))
    flush(log)
    take(log, Delta((2, 3), "d"), LENGTH)
    assert log.end
    usage = log.end.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (40, 30, 6)


def test_timings_are_those_of_this_attempt() -> None:
    """Queue and prefill are as told; the clock of the tokens runs forward."""
    log = take(make_log(), Prefilled(4, 0, 0.25), Delta((1,), "a"), Delta((2,), "b"), LENGTH)
    assert log.end
    times = log.end.timings
    assert (times.queue_s, times.prefill_s) == (1.5, 0.25)
    assert times.first_token_s > 0
    assert times.decode_s > 0


def test_without_a_token_there_is_no_first_token_time() -> None:
    """An attempt that ends before its first token has zeros, not nonsense."""
    log = take(make_log(), Delta((), "Once", echo=True), CANCELLED)
    assert log.end
    assert (log.end.timings.first_token_s, log.end.timings.decode_s) == (0, 0)


_DELTAS = st.builds(
    Delta,
    st.lists(st.integers(0, 300), max_size=3).map(tuple),
    st.text(max_size=3),
    st.integers(0, 1),
)
_STEPS = st.lists(st.one_of(_DELTAS, st.just("flush"), st.just("reply lost"), st.integers(0, 8)))


class ServerModel:
    """The log as Redis keeps it: appends by number, and can lose its tail."""

    def __init__(self, log: AttemptLog) -> None:
        self.payloads = list(log.payloads)
        self.num_known = len(self.payloads)  # what the attempt was granted stays

    def append(self, n: int, payloads: tuple[bytes, ...]) -> int:
        """Do what the script does; returns the log's next number."""
        if n <= len(self.payloads):
            self.payloads += payloads[len(self.payloads) - n :]
        return len(self.payloads)

    def lose(self, num_events: int) -> None:
        """Forget the last events."""
        del self.payloads[max(self.num_known, len(self.payloads) - num_events) :]


@given(_STEPS)
def test_any_interleaving_logs_the_concatenation(steps: list[Delta | str | int]) -> None:
    """Whatever is flushed when, lost or repeated, the log says what the engine said, once."""
    log = make_log(FIRST_LIFE, n=2)
    server = ServerModel(log)
    deltas = [step for step in steps if isinstance(step, Delta)]
    for step in [*steps, "flush", "flush"]:
        match step:
            case Delta():
                log.take(step)
            case int():
                server.lose(step)
            case "flush":
                log.confirm(server.append(log.confirmed, log.unsent()))
            case _:
                server.append(log.confirmed, log.unsent())
    assert log.is_sent
    events = tuple(decode_event(payload) for payload in server.payloads)
    for choice, (ids, text) in enumerate([((7, 8, 9), "ab"), ((), "")]):
        own = [delta for delta in deltas if delta.choice == choice]
        said = emitted(events, choice)
        assert said.ids == (*ids, *(i for delta in own for i in delta.ids))
        assert said.text == text + "".join(delta.text for delta in own)
        tokens = [e for e in events if isinstance(e, Tokens) and e.choice == choice]
        assert [t.index for t in tokens] == [
            sum(len(earlier.ids) for earlier in tokens[:at]) for at in range(len(tokens))
        ]


def test_a_restarted_answer_counts_from_zero() -> None:
    """Readers are told to discard what they have, and the engine gets a request of its own."""
    log = make_log(FIRST_LIFE)
    assert log.request.emitted == (Emitted((7, 8, 9), "ab"),)
    first_id = log.request.id
    log.restart("other model")
    take(log, Delta((1,), "x"), LENGTH)
    assert flush(log) == [Reset("other model"), Tokens(0, (1,), "x")]
    assert log.request.emitted == (Emitted(),)
    assert log.request.id != first_id
    assert log.end
    assert log.end.usage.completion_tokens == 1


def test_each_answer_has_an_event_of_its_own() -> None:
    """One per answer and flush, each with its own index; the echo of the prompt comes first."""
    log = make_log((ACCEPTED, Tokens(0, (5,), "v", choice=1)), n=2)
    take(log, Delta((), "Once", echo=True), Delta((6,), "w", choice=1), Delta((1,), "a"))
    take(log, Delta((7,), "x", choice=1), Delta((2,), "b"))
    assert flush(log) == [
        Tokens(0, (), "Once", echo=True),
        Tokens(0, (1, 2), "ab"),
        Tokens(1, (6, 7), "wx", choice=1),
    ]


def test_the_end_has_the_ends_of_all_answers() -> None:
    """Their tokens add up."""
    choices = (ChoiceEnd(0, FinishReason.STOP, True), ChoiceEnd(1, FinishReason.LENGTH, False))
    log = take(make_log(n=2), Delta((1, 2), "ab"), Delta((3,), "c", choice=1))
    take(log, Finished(FinishReason.STOP, is_eos=True, choices=choices))
    assert isinstance(log.end, Completed)
    assert (log.end.choices, log.end.is_eos) == (choices, True)
    assert log.end.usage.completion_tokens == 3


def test_a_deadline_expires_the_answers_that_go_on() -> None:
    """The engine cancels them; an answer that had its end keeps it."""
    ends = [ChoiceEnd(0, FinishReason.CANCELLED, False), ChoiceEnd(1, FinishReason.STOP, True)]
    log = make_log(n=2)
    log.expire = True
    take(log, Finished(FinishReason.CANCELLED, choices=tuple(ends)))
    assert isinstance(log.end, Expired)
    assert log.end.finish_reason is FinishReason.EXPIRED
    assert log.end.choices == (ChoiceEnd(0, FinishReason.EXPIRED, False), ends[1])


def test_a_restart_begins_every_answer_anew() -> None:
    """What was pending of the old ones is not said any more."""
    log = make_log((*FIRST_LIFE, Tokens(0, (5,), "v", choice=1)), n=2)
    take(log, Delta((6,), "w", choice=1))
    log.restart("other model")
    assert log.request.emitted == (Emitted(), Emitted())
    take(log, Delta((1,), "x", choice=1))
    assert flush(log) == [Reset("other model"), Tokens(0, (1,), "x", choice=1)]


def test_an_engine_without_token_ids_counts_itself() -> None:
    """Its number is the usage."""
    end = Finished(FinishReason.STOP, completion_tokens=12)
    log = take(make_log(), Delta((), "Some text"), end)
    assert log.end
    assert log.end.usage.completion_tokens == 12
