"""Flags and the settings they stand for."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from common.settings import Settings
from headrace.flags import DemoFlags, GatewayFlags, StackFlags, WorkerFlags, given, unpacked


@pytest.mark.parametrize("flags", [GatewayFlags, WorkerFlags, StackFlags, DemoFlags])
def test_every_flag_is_a_setting(flags: type[GatewayFlags | WorkerFlags | StackFlags]) -> None:
    """A flag that no setting has would be refused at the start."""
    assert {field.name for field in dataclasses.fields(flags)} <= set(Settings.model_fields)


def test_flags_that_are_not_given_say_nothing() -> None:
    """The environment and the file decide about the rest."""
    assert given(StackFlags(port=0, engine="fake")) == {"port": 0, "engine": "fake"}


@dataclass(frozen=True)
class Colours:
    """Two options."""

    front: Annotated[str, typer.Option(help="Front.")] = "red"
    back: Annotated[int, typer.Option(help="Back.")] = 1


def test_a_dataclass_becomes_options() -> None:
    """The command gets the object, the user sees its fields."""
    app = typer.Typer()

    @app.command()
    @unpacked
    def paint(what: str, colours: Colours, twice: bool = False) -> None:
        typer.echo(f"{what} {colours} {twice}")

    result = CliRunner().invoke(app, ["wall", "--back", "7", "--twice"])
    assert result.output == "wall Colours(front='red', back=7) True\n"
