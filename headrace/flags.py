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
from typer.core import TyperCommand

from headrace.addresses import DEFAULT_URL
from headrace.default_gateway import default_url


def _given_or_default(url: str) -> str:
    return url or default_url()


Url = Annotated[
    str,
    typer.Option(
        envvar="HEADRACE_URL",
        metavar="URL",
        help="Gateway to talk to.",
        callback=_given_or_default,
        show_default=f"that of a running `headrace up`, else {DEFAULT_URL}",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", hidden=True)]

RedisUrl = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="Redis of the gateways.",
        show_default="HEADRACE_REDIS, else that of a running `headrace up`, else the setting",
    ),
]

_Redis = Annotated[str | None, typer.Option(metavar="URL", help="Redis or Valkey to use.")]
# The defaults are the settings', which this module does not load. A test compares them.
_Host = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Address the gateway listens on. [default: 127.0.0.1]"),
]
_Port = Annotated[
    int | None,
    typer.Option(
        metavar="PORT", help="Port the gateway listens on, 0 = a free one. [default: 8700]"
    ),
]
_DemoPort = Annotated[
    int | None,
    typer.Option(metavar="PORT", help="Port the gateway listens on. [default: a free one]"),
]
_Model = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Model name, directory, GGUF file or Hugging Face ID."),
]
_Engine = Annotated[
    Literal["local", "remote", "vllm", "fake"] | None, typer.Option(help="What makes the tokens.")
]
# Its key is HEADRACE_UPSTREAM_KEY: a command line can be read by everybody on the machine.
_Upstream = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Remote engine: base URL of an OpenAI-compatible API."),
]
_Device = Annotated[
    Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Where the model runs.")
]
_Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"] | None,
    typer.Option(help="Numbers of the model. [default: float32 on a CPU, bfloat16 on a GPU]"),
]
_Quantize = Annotated[
    Literal["auto", "none", "int8", "int4"] | None,
    typer.Option(help="Local engine: weights. [default: int8 on a CPU if it can, none on a GPU]"),
]
_Capacity = Annotated[
    int | None, typer.Option(metavar="N", help="Jobs a worker runs at once. [default: 32]")
]
_DataDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Data and logs of the local stack.")
]
_Workers = Annotated[int | None, typer.Option(metavar="N", help="Workers to start. [default: 1]")]
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
    upstream: _Upstream = None
    device: _Device = None
    dtype: _Dtype = None
    quantize: _Quantize = None
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
    upstream: _Upstream = None
    device: _Device = None
    dtype: _Dtype = None
    quantize: _Quantize = None
    capacity: _Capacity = None
    log_level: _LogLevel = None


@dataclass(frozen=True, slots=True)
class DemoFlags(StackFlags):
    """The same for a stack that nobody else talks to."""

    port: _DemoPort = None


class PlainCommand(TyperCommand):
    """A command whose usage line has its arguments without braces. Its help text explains them.

    Typer would list them with their Python types.
    """

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


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
