"""Asking one question on a terminal: the answer as it comes, its end, and how fast it was."""

import time
from contextlib import aclosing
from dataclasses import dataclass

from common.events import Completed, Ended, Event, Reset, Retrying, Started, Tokens
from common.jobs import FinishReason
from headrace.client import Client
from headrace.errors import JobNotCompleted, StreamCut
from headrace.printing import AnswerPrinter
from headrace.terminal import note


@dataclass(slots=True)
class Measured:
    """What the reader saw. ``first_text_s`` counts from the submission, None before any text."""

    began: float
    first_text_s: float | None = None
    num_new: int = 0  # tokens of the first answer in the last attempt


async def print_answer(
    client: Client,
    job_id: str,
    printer: AnswerPrinter | None = None,
    *,
    after: int = -1,
    began: float | None = None,
) -> tuple[Ended, Measured]:
    """Print the answer's text as it comes; returns the job's end and what was measured."""
    printer = printer or AnswerPrinter()
    measured = Measured(time.monotonic() if began is None else began)
    async with aclosing(client.follow(job_id, after=after, notice=note)) as events:
        async for _, event in events:
            if isinstance(event, Ended):
                printer.finish()
                return event, measured
            _measure(event, measured)
            _print(event, printer)
    raise StreamCut(job_id, after, "nothing comes after it")


def require_completed(job_id: str, end: Ended) -> None:
    """Raise ``JobNotCompleted`` for every other end, with the reason."""
    if isinstance(end, Completed):
        return
    reason = f": {end.error.detail} ({end.error.type})" if end.error else ""
    raise JobNotCompleted(f"{job_id} {end.kind}{reason}")


def statistics(end: Ended, measured: Measured) -> str:
    """Return one line: TTFT, TPOT, speed, tokens, where it ran."""
    parts = []
    if measured.first_text_s is not None:
        parts.append(f"TTFT {measured.first_text_s * 1000:.0f} ms")
    if measured.num_new > 1 and end.timings.decode_s > 0:
        tpot_s = end.timings.decode_s / (measured.num_new - 1)
        parts.append(f"TPOT {tpot_s * 1000:.1f} ms, {1 / tpot_s:.1f} tok/s")
    usage = end.usage
    parts.append(f"{usage.prompt_tokens} prompt ({usage.cached_tokens} cached)")
    parts.append(f"{usage.completion_tokens} new tokens ({end.finish_reason})")
    parts.append(f"queued {end.timings.queue_s * 1000:.0f} ms")
    parts.append(f"attempt {end.attempts} on {end.worker}" if end.worker else "never started")
    return ", ".join(parts)


def cut(end: Ended) -> str:
    """Return one line about answers that ``max_tokens`` has cut, empty where there are none."""
    reasons = {choice.choice: choice.finish_reason for choice in end.choices}
    numbers = [str(n + 1) for n, reason in reasons.items() if reason is FinishReason.LENGTH]
    if numbers:
        return f"[cut: answer {', '.join(numbers)}; --max-tokens allows more]"
    if not reasons and end.finish_reason is FinishReason.LENGTH:
        return f"[cut at {end.usage.completion_tokens} tokens; --max-tokens allows more]"
    return ""


def _measure(event: Event, measured: Measured) -> None:
    match event:
        case Started():
            measured.num_new = 0
        case Tokens(choice=0, echo=False):
            measured.num_new += len(event.ids)
            if event.text and measured.first_text_s is None:
                measured.first_text_s = time.monotonic() - measured.began
        case _:
            pass


def _print(event: Event, printer: AnswerPrinter) -> None:
    match event:
        case Tokens():
            printer.take(event)
        case Retrying(reason=reason):
            note(f"[{reason}: waiting for another worker]")
        case Reset(reason=reason):
            printer.reset()
            note(f"[{reason}: the answer starts again]")
        case _:
            pass
