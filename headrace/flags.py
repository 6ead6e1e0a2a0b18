"""Flags that several commands share, each written once.

A dataclass of flags becomes the options of a command by ``unpacked``. The field of a settings flag
has the setting's name; ``None`` means "not given", so that the environment or the file decides.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Url = Annotated[str, typer.Option(envvar="HEADRACE_URL", help="Gateway to talk to.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Job ID.", show_default=False)]

_Redis = Annotated[str | None, typer.Option(metavar="URL", help="Redis or Valkey to use.")]
_Host = Annotated[str | None, typer.Option(help="Address the gateway listens on.")]
_Port = Annotated[int | None, typer.Option(help="Port the gateway listens on, 0 = a free one.")]
_Model = Annotated[
    str | None, typer.Option(help="Model name, directory, GGUF file or Hugging Face ID.")
]
_Engine = Annotated[Literal["local", "fake"] | None, typer.Option(help="What makes the tokens.")]
_Device = Annotated[
    Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Where the model runs.")
]
_Capacity = Annotated[int | None, typer.Option(help="Jobs a worker runs at once.")]
_DataDir = Annotated[Path | None, typer.Option(help="Data and logs of the local stack.")]
_Workers = Annotated[int | None, typer.Option(metavar="N", help="Workers to start.")]
_Insecure = Annotated[
    bool | None,
    typer.Option("--insecure", help="Allow a non-loopback address without API keys."),
]
_LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"] | None, typer.Option(help="Log level.")
]


@dataclass(frozen=True, slots=True)
class GatewayFlags:
    """Settings that the command line of a gateway can override."""

    redis: _Redis = None
    host: _Host = None
    port: _Port = None
    insecure: _Insecure = None
    log_level: _LogLevel = None


@dataclass(frozen=True, slots=True)
class WorkerFlags:
    """Settings that the command line of a worker can override."""

    redis: _Redis = None
    model: _Model = None
    engine: _Engine = None
    device: _Device = None
    capacity: _Capacity = None
    log_level: _LogLevel = None


@dataclass(frozen=True, slots=True)
class StackFlags:
    """Settings that the command line of the local stack can override."""

    host: _Host = None
    port: _Port = None
    insecure: _Insecure = None
    redis: _Redis = None
    data_dir: _DataDir = None
    workers: _Workers = None
    model: _Model = None
    engine: _Engine = None
    device: _Device = None
    capacity: _Capacity = None
    log_level: _LogLevel = None


def given(flags: GatewayFlags | WorkerFlags | StackFlags) -> dict[str, Any]:
    """Return the settings that the command line sets."""
    values = dataclasses.asdict(flags)
    return {name: value for name, value in values.items() if value is not None}


def unpacked(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the fields of its dataclass parameters as options of their own."""
    bundles: dict[str, type] = {}
    options: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        annotation = parameter.annotation
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            bundles[parameter.name] = annotation
            options += inspect.signature(annotation).parameters.values()
        else:
            options.append(parameter)

    @functools.wraps(command)
    def with_options(**values: Any) -> None:
        for name, bundle in bundles.items():
            fields = inspect.signature(bundle).parameters
            values[name] = bundle(**{field: values.pop(field) for field in fields})
        command(**values)

    options = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options]
    with_options.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    with_options.__annotations__ = {option.name: option.annotation for option in options}
    return with_options
