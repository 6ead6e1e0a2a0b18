"""The command line: which commands there are, and how they end.

Exit codes: 0 done, 1 the operation failed, 2 wrong usage, 3 a process could not start.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module, metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from common.errors import HeadraceError, StartupFailed
from headrace.terminal import complain

FAILED = 1
START_FAILED = 3

COMMANDS = {
    "up": ("up", "Start everything on this machine."),
    "demo": ("up", "Start everything, stream one answer, stop everything."),
    "run": ("answers", "Ask, and print the answer as it comes."),
    "submit": ("answers", "Ask, and print the job's ID."),
    "follow": ("answers", "Print the answer of a job from its start."),
    "cancel": ("answers", "Cancel a job."),
    "jobs": ("listings", "List the jobs, the newest first."),
    "prompts": ("prompts", "Show or forget what a prompt ID stands for."),
    "keys": ("keys", "Make, list and revoke API keys."),
    "dead": ("dead", "List, retry and drop jobs that were given up."),
    "ps": ("listings", "List the workers that live."),
    "doctor": ("doctor", "Check Redis, the gateway, the workers and this machine."),
    "config": ("config", "Show the settings."),
    "gateway": ("gateway", "Run a gateway: HTTP, SSE and WebSocket in front of Redis."),
    "worker": ("worker", "Run a worker: it claims jobs and turns prompts into tokens."),
}
"""Command → (its module in ``headrace.commands``, its help)."""


class _Lazy(Mapping[str, Any]):
    """The commands by name. A module is imported when its command is asked for."""

    def __getitem__(self, name: str) -> Any:
        module, _ = COMMANDS[name]
        return get_group(import_module(f"headrace.commands.{module}").app).commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class _Commands(TyperGroup):
    """Loads a command when it is used, and turns Headrace's errors into a line and a code."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands: Any = _Lazy()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for number, argument in enumerate(args, 1):
            try:
                argument.encode()
            except UnicodeEncodeError:
                raise typer.BadParameter(f"argument {number} is not UTF-8 text", ctx) from None
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except StartupFailed as error:
            complain(str(error))
            raise typer.Exit(START_FAILED) from error
        except HeadraceError as error:
            complain(str(error))
            raise typer.Exit(FAILED) from error


app = typer.Typer(
    name="headrace",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: rich alone would double the time to show it
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every setting is a HEADRACE_ variable or a line of ~/.config/headrace/headrace.toml "
    "(HEADRACE_CONFIG names another file), and the common ones are flags; "
    "see `headrace config show`.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headrace {metadata.version('headrace')}")
        raise typer.Exit


@app.callback()
def headrace(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    """Durable LLM inference jobs: submit a prompt, follow its tokens, lose nothing."""


def main() -> None:
    """Run the command line."""
    app()
