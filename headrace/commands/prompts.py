"""``prompts show`` and ``prompts forget``: what a prompt ID stands for."""

import asyncio
from typing import Annotated

import msgspec
import typer

from headrace.client import Client
from headrace.flags import Json, PlainCommand, Url
from headrace.terminal import note, write_json, write_table
from headrace.views import Prompt

app = typer.Typer(rich_markup_mode=None)
_prompts = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(_prompts, name="prompts", help="Show or forget what a prompt ID stands for.")

PromptId = Annotated[str, typer.Argument(metavar="ID", hidden=True)]
Model = Annotated[str, typer.Option(metavar="MODEL", help="Its model. [default: the gateway's]")]


@_prompts.callback()
def prompts() -> None:
    """Show or forget what a prompt ID stands for."""


@_prompts.command(cls=PlainCommand)
def show(prompt_id: PromptId, model: Model = "", json: Json = False, url: Url = "") -> None:
    """Show what is stored under ID: its version, its length, and who holds its KV cache."""
    found = asyncio.run(_show(url, prompt_id, model))
    if json:
        write_json(msgspec.to_builtins(found))
        return
    header = ("ID", "MODEL", "VERSION", "TOKENS", "WORKER")
    cells = (str(found.version), str(found.length), found.worker or "-")
    write_table(header, [(found.id, found.model, *cells)])


@_prompts.command(cls=PlainCommand)
def forget(prompt_id: PromptId, model: Model = "", json: Json = False, url: Url = "") -> None:
    """Forget what is stored under ID; running jobs are not touched."""
    asyncio.run(_forget(url, prompt_id, model))
    if json:
        write_json({"id": prompt_id, "forgotten": True})
    else:
        note(f"{prompt_id} is forgotten")


async def _show(url: str, prompt_id: str, model: str) -> Prompt:
    async with Client(url) as client:
        return await client.prompt(prompt_id, model=model)


async def _forget(url: str, prompt_id: str, model: str) -> None:
    async with Client(url) as client:
        await client.forget_prompt(prompt_id, model=model)
