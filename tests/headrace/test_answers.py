"""``run``, ``submit``, ``follow`` and ``cancel``, against a fake gateway."""

import json
import os
import signal
from collections.abc import Callable

import pytest
from typer.testing import Result

from common.events import (
    Accepted,
    ChoiceEnd,
    Completed,
    ErrorInfo,
    Event,
    Failed,
    Reset,
    Retrying,
    Started,
    Timings,
    Tokens,
    Usage,
)
from common.jobs import FinishReason
from tests.headrace.fake_gateway import (
    EVENTS,
    JOB,
    Reply,
    events,
    fake_gateway_in_thread,
    frames,
    json_reply,
    problem,
    stream,
)

Headrace = Callable[..., Result]

SUBMITTED = json_reply({"id": JOB, "status": "queued", "model": "m"}, 202)
SHOWN = json_reply({"id": JOB, "status": "running", "model": "m"})
CANCELLED = json_reply({"id": JOB, "status": "running", "cancelled": "running"})
ANSWER = "Rivers [bold]meander[/bold]\u2028\n"
FAILURE = Failed(FinishReason.ERROR, error=ErrorInfo("worker_lost", "Three workers died."))


def body(request: str) -> dict[str, object]:
    """Return the JSON of a request."""
    return dict(json.loads(request.partition("\r\n\r\n")[2]))


def test_run_prints_the_text_as_it_is(headrace: Headrace) -> None:
    """No markup is interpreted, nothing is added but the last line break."""
    with fake_gateway_in_thread(SUBMITTED, stream(events(0))) as gateway:
        result = headrace("run", "Why?", url=gateway.url)
    assert (result.exit_code, result.stdout, result.stderr) == (0, ANSWER, "")
    assert body(gateway.requests[0]) == {
        "messages": [{"role": "user", "content": "Why?"}],
        "temperature": 0.6,
    }


def test_run_sends_what_was_asked(headrace: Headrace) -> None:
    """Options become fields, ``-`` is standard input."""
    options = "--system Be_brief --max-tokens 5 --temperature 0 --top-p 0.5 --top-k 4 --seed 3"
    more = "--stop END --stop STOP --priority low --deadline-s 9 --prompt-id p --model m"
    with fake_gateway_in_thread(SUBMITTED, stream(events(0))) as gateway:
        result = headrace("run", "-", *options.split(), *more.split(), url=gateway.url, stdin="Hm")
    assert result.exit_code == 0
    assert body(gateway.requests[0]) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be_brief"},
            {"role": "user", "content": "Hm"},
        ],
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 4,
        "seed": 3,
        "stop": ["END", "STOP"],
        "priority": "low",
        "deadline_s": 9.0,
        "prompt_id": "p",
    }


def test_run_sends_every_option_of_the_answer(headrace: Headrace) -> None:
    """Those that can be repeated become lists, biases an object."""
    options = "--raw --min-p 0.1 --repetition-penalty 1.5 --presence-penalty -1 --logprobs 0 --echo"
    more = "--frequency-penalty 2 --logit-bias 7=-100,11=2.5 --min-tokens 2 --ignore-eos --n 2"
    stop = "--stop-token-id 5 --stop-token-id 6"
    given = [*options.split(), *more.split(), *stop.split()]
    with fake_gateway_in_thread(SUBMITTED, stream(events(0))) as gateway:
        assert headrace("run", "Once", *given, url=gateway.url).exit_code == 0
    assert body(gateway.requests[0]) == {
        "prompt": "Once",
        "temperature": 0.6,
        "min_p": 0.1,
        "repetition_penalty": 1.5,
        "presence_penalty": -1.0,
        "frequency_penalty": 2.0,
        "logit_bias": {"7": -100.0, "11": 2.5},
        "stop_token_ids": [5, 6],
        "min_tokens": 2,
        "ignore_eos": True,
        "n": 2,
        "logprobs": 0,
        "echo": True,
    }


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        (["Hm", "--append"], {"append": [{"role": "user", "content": "Hm"}]}),
        (["Hm", "--append", "--raw"], {"append": "Hm"}),
        (["--continue"], {}),
        (["--continue", "--if-version", "3"], {"if_version": 3}),
    ],
)
def test_submit_builds_on_what_is_stored(
    headrace: Headrace, arguments: list[str], sent: dict[str, object]
) -> None:
    """PROMPT is added to what a prompt ID names, or nothing is."""
    with fake_gateway_in_thread(SUBMITTED) as gateway:
        result = headrace("submit", *arguments, "--prompt-id", "chat", url=gateway.url)
    assert result.exit_code == 0
    assert body(gateway.requests[0]) == {"temperature": 0.6, "prompt_id": "chat", **sent}


SEVERAL: list[Event] = [
    Accepted(JOB, "m"),
    Tokens(0, (), "Once ", echo=True),
    Tokens(0, (1,), "upon "),
    Tokens(0, (2,), "more", choice=1),
    Tokens(1, (3,), "a time"),
    Completed(
        FinishReason.STOP,
        choices=(ChoiceEnd(0, FinishReason.STOP, True), ChoiceEnd(1, FinishReason.LENGTH, False)),
    ),
]
HEADED = "--- answer 1 of 2 ---\nOnce upon a time\n--- answer 2 of 2 ---\nOnce more\n"


def test_several_answers_have_headings(headrace: Headrace) -> None:
    """The first comes as it is made, the other one behind it; which was cut is said."""
    with fake_gateway_in_thread(SUBMITTED, stream(frames(SEVERAL))) as gateway:
        result = headrace("run", "Why?", "--n", "2", url=gateway.url)
    assert result.stdout == HEADED
    assert result.stderr == "[cut: answer 2; --max-tokens allows more]\n"


def test_a_followed_job_has_its_headings(headrace: Headrace) -> None:
    """The job itself says how many answers there are."""
    choices = [{"index": index, "text": ""} for index in range(2)]
    shown = json_reply({"id": JOB, "status": "running", "model": "m", "choices": choices})
    with fake_gateway_in_thread(shown, stream(frames(SEVERAL))) as gateway:
        assert headrace("follow", JOB, url=gateway.url).stdout == HEADED


def test_run_json_prints_the_job(headrace: Headrace) -> None:
    """Once it has ended, and no text beside it."""
    shown = {"id": JOB, "status": "completed", "model": "m", "text": "upon a time"}
    with fake_gateway_in_thread(SUBMITTED, stream(frames(SEVERAL)), json_reply(shown)) as gateway:
        result = headrace("run", "Why?", "--json", url=gateway.url)
    assert shown.items() <= json.loads(result.stdout).items()


def test_run_raw_sends_the_prompt(headrace: Headrace) -> None:
    """Without the chat template the text goes as it is."""
    with fake_gateway_in_thread(SUBMITTED, stream(events(0))) as gateway:
        assert headrace("run", "Once", "--raw", url=gateway.url).exit_code == 0
    assert body(gateway.requests[0]) == {"prompt": "Once", "temperature": 0.6}


def test_run_says_how_fast_it_was(headrace: Headrace) -> None:
    """TPOT counts the tokens of the last attempt, and only those decoded after the first."""
    end = Completed(
        FinishReason.LENGTH,
        usage=Usage(7, 5, 2),
        timings=Timings(queue_s=0.004, decode_s=0.2),
        attempts=2,
        worker="w2",
    )
    log: list[Event] = [
        Accepted(JOB, "m"),
        Started("w1", 1),
        Tokens(0, (1, 2), "a"),
        Retrying("worker_lost"),
        Started("w2", 2),
        Tokens(2, (3, 4, 5), "b"),
        end,
    ]
    with fake_gateway_in_thread(SUBMITTED, stream(frames(log))) as gateway:
        result = headrace("run", "Why?", "--stats", url=gateway.url)
    assert result.stdout == "ab\n"
    assert "worker_lost: waiting for another worker" in result.stderr
    assert "TPOT 100.0 ms, 10.0 tok/s, 7 prompt (2 cached), 5 new tokens (length)" in result.stderr
    assert "queued 4 ms, attempt 2 on w2" in result.stderr


def test_a_reset_is_said(headrace: Headrace) -> None:
    """Text that does not count any more ends its line, and the reader is told."""
    log: list[Event] = [
        Accepted(JOB, "m"),
        Tokens(0, (1,), "old"),
        Reset("other_model"),
        *EVENTS[2:],
    ]
    with fake_gateway_in_thread(SUBMITTED, stream(frames(log))) as gateway:
        result = headrace("run", "Why?", url=gateway.url)
    assert result.stdout == "old\n" + ANSWER
    assert "other_model: the answer starts again" in result.stderr


def test_a_job_that_fails_is_code_1(headrace: Headrace) -> None:
    """The reason is one line."""
    with fake_gateway_in_thread(SUBMITTED, stream(frames([FAILURE]))) as gateway:
        result = headrace("run", "Why?", url=gateway.url)
    assert result.exit_code == 1
    assert result.stderr == f"headrace: {JOB} failed: Three workers died. (worker_lost)\n"


def test_a_job_that_cannot_be_followed_is_named(headrace: Headrace) -> None:
    """The key may submit and not read: somebody else may want to follow the job, or cancel it."""
    with fake_gateway_in_thread(SUBMITTED, problem(403, "scope-missing")) as gateway:
        result = headrace("run", "Why?", url=gateway.url)
    assert result.exit_code == 1
    assert f"{JOB} was accepted, and goes on" in result.stderr


def test_ctrl_c_cancels_the_job(headrace: Headrace) -> None:
    """The text so far stays, the job ends, and people are told."""
    with fake_gateway_in_thread(SUBMITTED, stream(events(0, 2), hold=True), CANCELLED) as gateway:
        gateway.on_hold = lambda: os.kill(os.getpid(), signal.SIGINT)
        result = headrace("run", "Why?", url=gateway.url)
    assert gateway.requests[2].startswith(f"DELETE /v1/jobs/{JOB} ")
    assert result.exit_code == 1
    assert result.stderr == f"headrace: {JOB}: cancel asked for while it runs\n"


def test_ctrl_c_leaves_a_followed_job(headrace: Headrace) -> None:
    """Who follows is not who asked."""
    with fake_gateway_in_thread(SHOWN, stream(events(0, 2), hold=True)) as gateway:
        gateway.on_hold = lambda: os.kill(os.getpid(), signal.SIGINT)
        result = headrace("follow", JOB, url=gateway.url)
    assert len(gateway.requests) == 2
    assert result.exit_code == 1
    assert f"{JOB} goes on; cancel it with `headrace cancel {JOB}`" in result.stderr


def test_submit_prints_the_id_only(headrace: Headrace) -> None:
    """A script can keep it."""
    with fake_gateway_in_thread(SUBMITTED) as gateway:
        result = headrace("submit", "Why?", url=gateway.url)
    assert (result.exit_code, result.stdout) == (0, f"{JOB}\n")


@pytest.mark.parametrize("command", ["run", "submit"])
def test_the_same_key_gives_the_same_job(headrace: Headrace, command: str) -> None:
    """Who was told nothing can ask again."""
    with fake_gateway_in_thread(SUBMITTED, stream(events(0))) as gateway:
        result = headrace(command, "Why?", "--idempotency-key", "k", url=gateway.url)
    assert result.exit_code == 0
    assert gateway.asked("Idempotency-Key")[0] == "k"


def test_follow_prints_the_rest(headrace: Headrace) -> None:
    """``--after`` is a cursor."""
    with fake_gateway_in_thread(SHOWN, stream(events(3))) as gateway:
        result = headrace("follow", JOB, "--after", "2", url=gateway.url)
    assert result.stdout == ANSWER.removeprefix("Rivers ")
    assert gateway.asked("Last-Event-ID") == ["", "2"]


def test_follow_json_is_one_line_per_event(headrace: Headrace) -> None:
    """Every line has the event's number and kind."""
    with fake_gateway_in_thread(SHOWN, stream(events(0))) as gateway:
        result = headrace("follow", JOB, "--json", url=gateway.url)
    lines = [json.loads(line) for line in result.stdout.split("\n") if line]
    assert [(line["n"], line["kind"]) for line in lines] == [
        (n, event.kind) for n, event in enumerate(EVENTS)
    ]
    assert lines[2]["text"] == "Rivers "


def test_nothing_after_the_end_is_said(headrace: Headrace) -> None:
    """A cursor behind the terminal event gets no answer, and no success."""
    with fake_gateway_in_thread(SHOWN, Reply(b"", 204)) as gateway:
        result = headrace("follow", JOB, "--after", "4", url=gateway.url)
    assert result.exit_code == 1
    assert "nothing comes after it" in result.stderr


def test_cancel_says_what_it_met(headrace: Headrace) -> None:
    """The line tells a running job from one that waited and one that was over."""
    waited = json_reply({"id": JOB, "status": "cancelled", "cancelled": "queued"})
    ended = json_reply({"id": JOB, "status": "completed", "cancelled": "already_ended"})
    with fake_gateway_in_thread(CANCELLED, waited, ended) as gateway:
        running, queued, late = (headrace("cancel", JOB, url=gateway.url) for _ in range(3))
    assert running.stderr == f"{JOB}: cancel asked for while it runs\n"
    assert queued.stderr == f"{JOB} cancelled before it started\n"
    assert late.stderr == f"{JOB} had ended already (completed)\n"
    assert late.exit_code == 0


@pytest.mark.parametrize("command", [["run", "x"], ["submit", "x"], ["follow", JOB], ["ps"]])
def test_no_gateway_is_one_line(headrace: Headrace, command: list[str]) -> None:
    """The line says how to start one."""
    result = headrace(*command, url="http://127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "no gateway answers at http://127.0.0.1:1" in result.stderr
    assert "headrace up" in result.stderr


def test_a_refusal_is_one_line(headrace: Headrace) -> None:
    """The detail and the request's ID are shown."""
    with fake_gateway_in_thread(problem(404, "model-not-found")) as gateway:
        result = headrace("run", "x", url=gateway.url)
    assert (result.exit_code, result.stderr) == (1, "headrace: Do this. (request req-1)\n")
