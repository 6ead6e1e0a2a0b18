"""Settings: flags, then ``HEADRACE_*``, then a TOML file, then defaults.

One class for every process, so that a name means the same everywhere: the flag ``--data-dir``, the
variable ``HEADRACE_DATA_DIR`` and the file's ``data_dir`` are one setting. Every setting is a
``HEADRACE_`` variable or a line of the TOML file, and the common ones are flags (see
``headrace config show``). A wrong or unknown one stops the start with one line.
"""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from common.errors import StartupFailed
from common.topology.server_url import WrongUrl, read_url

ENV_PREFIX = "HEADRACE_"
DEFAULT_MODEL = "SmolLM2-135M-Instruct"
_FILE_VARIABLE = "HEADRACE_CONFIG"
_OTHER_VARIABLES = {_FILE_VARIABLE, "HEADRACE_URL", "HEADRACE_API_KEY"}

Seconds = Annotated[float, Field(gt=0, le=31_536_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


def _home(variable: str, fallback: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / fallback) / "headrace"


class Settings(BaseSettings):
    """All settings. Durations are seconds, sizes bytes."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    redis: str = Field("redis://127.0.0.1:6379", description="Redis or Valkey URL (docs/redis.md)")
    key_prefix: str = Field("hr", pattern=r"^[A-Za-z0-9_-]{1,32}$", description="before every key")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="log level")
    log_json: bool = Field(False, description="JSON logs also on a terminal")

    host: str = Field("127.0.0.1", description="address the gateway listens on")
    port: int = Field(
        8700, ge=0, le=65_535, description="port the gateway listens on, 0 = free one"
    )
    insecure: bool = Field(False, description="allow a non-loopback address without API keys")
    allowed_origins: str = Field(
        "", description="web origins that may use the API, such as https://chat.example, by comma"
    )
    default_model: str = Field(
        "", description="model of a job that names none; empty: one that is served, while it is"
    )
    retention_s: Seconds = Field(3600, description="how long a finished job can be read")
    max_deadline_s: Seconds = Field(86_400, description="longest (and default) life of a job")
    max_queued: Count = Field(100_000, description="waiting jobs per model, above it 429")
    tenant_max_queued: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        10_000, description="waiting jobs per tenant and model, where its key says nothing; 0 = any"
    )
    tenant_max_running: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        0, description="running jobs per tenant and model, where its key says nothing; 0 = any"
    )
    tenant_tokens_per_minute: Annotated[int, Field(ge=0, le=10**12)] = Field(
        0, description="tokens a tenant may ask for, where its key says nothing; 0 = any number"
    )
    max_body_bytes: int = Field(4 * 1024**2, ge=1024, description="largest request body or message")
    ping_s: Seconds = Field(5, description="longest silence on a stream")
    write_timeout_s: Seconds = Field(
        30, description="a reader that takes nothing is cut after this"
    )
    resync_s: Seconds = Field(3, description="idle streams are compared with the log this often")
    max_streams: Count = Field(10_000, description="open streams per gateway, above it 503")
    max_sockets: Count = Field(20_000, description="open connections per gateway, above it 503")
    request_timeout_s: Seconds = Field(
        60, description="a request that has not arrived after this is refused"
    )
    gateway_drain_s: Seconds = Field(5, description="time for streams to close on SIGTERM")

    model: str = Field(
        DEFAULT_MODEL, min_length=1, description="name, directory, GGUF file or hub ID"
    )
    engine: Literal["local", "remote", "vllm", "fake"] = Field(
        "local", description="what turns prompts into tokens"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")
    capacity: Annotated[int, Field(ge=1, le=4096)] = Field(
        32, description="jobs a worker runs at once"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="numbers of the model; auto: float32 on a CPU, bfloat16 on a GPU"
    )
    quantize: Literal["auto", "none", "int8", "int4"] = Field(
        "auto", description="local engine: weights; auto: int8 on a CPU, none on a GPU"
    )
    step_tokens: Annotated[int, Field(ge=16, le=65_536)] = Field(
        512, description="local engine: most tokens in one step, prompts and answers together"
    )
    kv_bytes: int = Field(
        0, ge=0, description="local engine: KV cache on the device, 0 = a share of the free memory"
    )
    kv_host_bytes: int = Field(
        1024**3, ge=0, description="local engine: KV cache in host memory, 0 = off"
    )
    kv_disk_bytes: int = Field(
        4 * 1024**3, ge=0, description="local engine: KV cache on disk, under cache_dir, 0 = off"
    )
    prompt_ttl_s: Seconds = Field(86_400, description="a prompt ID is kept this long after its use")
    affinity_patience_s: float = Field(
        5, ge=0, le=3600, description="longest wait for the worker that holds a prompt's KV cache"
    )
    watchdog_s: Seconds = Field(
        60, description="a worker is ended when a step of its engine or loop takes this long"
    )
    upstream: str = Field("", description="remote engine: base URL of an OpenAI-compatible API")
    upstream_key: str = Field("", repr=False, description="remote engine: its API key")
    threads: int = Field(
        0, ge=0, le=1024, description="CPU threads of the engine, 0 = torch's choice"
    )
    cache_dir: Path = Field(
        default_factory=lambda: _home("XDG_CACHE_HOME", ".cache"),
        description="converted models, compiled code and KV tensors",
    )
    fake_tokens_per_s: float = Field(
        20, ge=0, description="fake engine: speed per job, 0 = no limit"
    )
    lease_s: Seconds = Field(10, description="a worker that is silent for this long is dead")
    max_losses: Count = Field(3, description="workers that a job may lose before it fails")
    flush_ms: float = Field(30, ge=0, le=1000, description="append a job's tokens about this often")
    poll_s: Seconds = Field(1, description="look for work this often without a bell")
    worker_drain_s: Seconds = Field(
        20, description="time for running jobs to finish on SIGTERM (`up`: 3 at most)"
    )
    metrics_port: int = Field(0, ge=0, le=65_535, description="worker metrics on loopback, 0 = off")

    data_dir: Path = Field(
        default_factory=lambda: _home("XDG_DATA_HOME", ".local/share"),
        description="embedded server's data",
    )
    workers: Annotated[int, Field(ge=0, le=256)] = Field(1, description="workers that `up` starts")

    @field_validator("redis")
    @classmethod
    def _is_redis_url(cls, url: str) -> str:
        try:
            read_url(url)
        except WrongUrl as error:
            raise PydanticCustomError("redis_url", "{why}", {"why": str(error)}) from None
        return url

    @classmethod
    def settings_customise_sources(  # noqa: D102 - pydantic-settings' hook
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


Layer = tuple[str, dict[str, Any]]


def load(flags: dict[str, Any] | None = None) -> Settings:
    """Return the settings; raises ``StartupFailed`` with one line about the first wrong one."""
    layers = _layers(flags or {})
    merged: dict[str, Any] = {}
    for _, values in reversed(layers):
        merged |= values
    try:
        return Settings(**merged)
    except ValidationError as error:
        raise StartupFailed(_one_line(error, layers)) from None


def origins(flags: dict[str, Any] | None = None) -> dict[str, str]:
    """Return for every setting where its value comes from."""
    layers = _layers(flags or {})
    return {
        name: next((origin for origin, values in layers if name in values), "default")
        for name in Settings.model_fields
    }


def as_environment(settings: Settings) -> dict[str, str]:
    """Return the variables that give a child process these settings."""
    return {
        f"{ENV_PREFIX}{name.upper()}": str(value)
        for name, value in settings.model_dump(mode="json").items()
    }


def _layers(flags: dict[str, Any]) -> list[Layer]:
    given = {name: value for name, value in flags.items() if value is not None}
    path, from_file = _file()
    return [("flag", given), ("environment", _environment()), (path, from_file)]


def _environment() -> dict[str, str]:
    values = {}
    for variable, value in os.environ.items():
        if not variable.startswith(ENV_PREFIX) or variable in _OTHER_VARIABLES:
            continue
        name = variable[len(ENV_PREFIX) :].lower()
        if name not in Settings.model_fields:
            raise StartupFailed(f"{variable} is not a setting; see `headrace config show`")
        values[name] = value
    return values


def _file() -> tuple[str, dict[str, Any]]:
    named = os.environ.get(_FILE_VARIABLE)
    path = Path(named) if named else _home("XDG_CONFIG_HOME", ".config") / "headrace.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        if not named and isinstance(error, FileNotFoundError | NotADirectoryError):
            return str(path), {}
        raise StartupFailed(f"cannot read the settings file {path}: {error}") from None
    unknown = sorted(set(values) - set(Settings.model_fields))
    if unknown:
        raise StartupFailed(f"{path}: {unknown[0]!r} is not a setting; see `headrace config show`")
    return str(path), values


def _one_line(error: ValidationError, layers: list[Layer]) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    origin = next((origin for origin, values in layers if name in values), "default")
    spelling = {"flag": f"--{name.replace('_', '-')}", "environment": ENV_PREFIX + name.upper()}
    where = spelling.get(origin, f"{name} in {origin}")
    given = first["input"]
    hides = "@" in str(given) or "password" in str(given).lower()  # a URL with a password
    shown = "…" if hides else repr(given)
    return f"{where} = {shown}: {first['msg'].lower()}"
