"""What a question on the command line says: the options of ``run`` and ``submit``."""

import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from common.jobs import Message, Priority
from headrace.views import JobRequest

STANDARD_INPUT = "-"


@dataclass(frozen=True, slots=True)
class Drawing:
    """The options of drawing the next token."""

    temperature: Annotated[
        float, typer.Option(metavar="NUMBER", help="Randomness; 0 = always the likeliest token.")
    ] = 0.6  # the API's own default is 1, which small models do not bear
    top_p: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Sample from this much probability.")
    ] = None
    top_k: Annotated[
        int | None, typer.Option(metavar="N", help="Sample from this many tokens, 0 = all.")
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Least probability, as a share of the likeliest's."),
    ] = None
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed of the random numbers.")] = (
        None
    )
    repetition_penalty: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Against what occurred anywhere; 1 = none."),
    ] = None
    presence_penalty: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Against what the answer has; 0 = none."),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="The same, for every occurrence."),
    ] = None
    logit_bias: Annotated[
        str | None,
        typer.Option(metavar="ID=BIAS,...", help="Make tokens more or less likely, -100 to 100."),
    ] = None

    def fields(self) -> dict[str, Any]:
        """Return these options as fields of a job."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "seed": self.seed,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": read_biases(self.logit_bias or ""),
        }


@dataclass(frozen=True, slots=True)
class Asking:
    """The options of a question."""

    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Model; default: the gateway's.")
    ] = None
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System message before the prompt.")
    ] = None
    raw: Annotated[bool, typer.Option("--raw", help="Send the prompt without chat template.")] = (
        False
    )
    prompt_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Keep prompt and answer under this name."),
    ] = None
    append: Annotated[
        bool, typer.Option("--append", help="Add PROMPT to what --prompt-id names.")
    ] = False
    go_on: Annotated[
        bool, typer.Option("--continue", help="Continue what --prompt-id names, without PROMPT.")
    ] = False
    if_version: Annotated[
        int | None,
        typer.Option(metavar="N", help="Only if --prompt-id has this version at the start."),
    ] = None
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Longest answer; default: the gateway's 256.")
    ] = None
    min_tokens: Annotated[int | None, typer.Option(metavar="N", help="Shortest answer.")] = None
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End here; can be repeated.")
    ] = None
    stop_token_id: Annotated[
        list[int] | None, typer.Option(metavar="ID", help="The same, by token.")
    ] = None
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on where the model would end.")
    ] = False
    n: Annotated[int | None, typer.Option("--n", metavar="N", help="Make this many answers.")] = (
        None
    )
    logprobs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Probabilities, with N alternatives; shown by --json."),
    ] = None
    echo: Annotated[bool, typer.Option("--echo", help="Put the prompt before the answer.")] = False
    priority: Annotated[Priority | None, typer.Option(help="Lane to wait in.")] = None
    deadline_s: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Give up after this time.")
    ] = None
    queue_deadline_s: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Give up if it starts later than this.")
    ] = None
    run_deadline_s: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Give up when it runs for this time.")
    ] = None
    durable: Annotated[
        bool, typer.Option("--durable", help="Accept it once Redis has it on disk.")
    ] = False
    idempotency_key: Annotated[
        str,
        typer.Option(metavar="KEY", help="The same key gives the same job.", show_default=False),
    ] = ""

    def request(self, prompt: str | None, drawing: Drawing) -> JobRequest:
        """Return the job that asks ``prompt`` with these options."""
        self._check(prompt)
        return JobRequest(
            **self._said(prompt),
            **drawing.fields(),
            model=self.model,
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            stop=tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_id or ()),
            ignore_eos=self.ignore_eos,
            n=self.n,
            logprobs=self.logprobs,
            echo=self.echo,
            priority=self.priority,
            deadline_s=self.deadline_s,
            queue_deadline_s=self.queue_deadline_s,
            run_deadline_s=self.run_deadline_s,
            durable=self.durable,
            prompt_id=self.prompt_id,
            if_version=self.if_version,
        )

    def _check(self, prompt: str | None) -> None:
        if (self.append or self.go_on) and self.prompt_id is None:
            raise typer.BadParameter("--append and --continue need a --prompt-id")
        if self.go_on and (prompt is not None or self.append or self.system is not None):
            raise typer.BadParameter("--continue goes without PROMPT, --append and --system")
        if self.raw and self.system is not None:
            raise typer.BadParameter("--system needs the chat template; leave --raw out")
        if prompt is None and not self.go_on:
            raise typer.BadParameter("PROMPT is missing; - reads standard input")

    def _said(self, prompt: str | None) -> dict[str, Any]:
        """Return the field that has the prompt; none to continue what is stored."""
        if prompt is None:
            return {}
        text = _standard_input() if prompt == STANDARD_INPUT else prompt
        if not text.strip():
            raise typer.BadParameter("the prompt is empty")
        if self.raw:
            return {"append" if self.append else "prompt": text}
        turns = [("system", self.system)] if self.system is not None else []
        messages = tuple(Message(role, said) for role, said in [*turns, ("user", text)])
        return {"append" if self.append else "messages": messages}


def read_biases(text: str) -> dict[int, float]:
    """Return the biases by token ID of ``ID=BIAS,…``."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    try:
        return {int(token_id): float(bias) for token_id, _, bias in pairs}
    except ValueError:
        raise typer.BadParameter(
            f"--logit-bias is ID=BIAS,... with numbers, not {text!r}"
        ) from None


def _standard_input() -> str:
    try:
        text = sys.stdin.read()
        text.encode()
    except UnicodeError:
        raise typer.BadParameter("standard input is not UTF-8 text") from None
    return text
