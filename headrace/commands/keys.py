"""``keys create``, ``list``, ``revoke`` and ``reset``: API keys, made by who can reach Redis."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, TypeVar

import msgspec
import typer
from redis.asyncio import Redis

from common.api_keys import ApiKey, ApiKeyStore, Scope
from common.errors import HeadraceError
from common.keys import Keys
from common.limits import Limits
from common.names import is_name
from headrace.flags import Json, PlainCommand, RedisUrl, unpacked
from headrace.redis_command import with_redis
from headrace.terminal import note, write_json, write_table

app = typer.Typer(rich_markup_mode=None)
_keys = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(_keys, name="keys", help="Make, list and revoke API keys.")

_DAY_S = 86_400
Result = TypeVar("Result")

KeyId = Annotated[str, typer.Argument(metavar="ID", hidden=True)]


@dataclass(frozen=True, slots=True)
class KeyFlags:
    """What a key is for. Limits are the tenant's, for each model."""

    tenant: Annotated[
        str, typer.Option(metavar="NAME", help="Whose jobs and prompt IDs it opens.")
    ] = "default"
    scopes: Annotated[
        list[Scope] | None,
        typer.Option(
            "--scope",
            help="What it may do; give it several times.",
            show_default="read and submit",
        ),
    ] = None
    days: Annotated[
        float, typer.Option(metavar="N", min=0, max=36_500, help="It expires then, 0: not.")
    ] = 0
    max_queued: Annotated[
        int, typer.Option(metavar="N", min=0, max=1_000_000, help="Jobs that may wait.")
    ] = 0
    max_running: Annotated[
        int, typer.Option(metavar="N", min=0, max=1_000_000, help="Jobs that may run at once.")
    ] = 0
    tokens_per_minute: Annotated[
        int, typer.Option(metavar="N", min=0, max=10**12, help="Tokens that may be asked for.")
    ] = 0
    weight: Annotated[
        float, typer.Option(metavar="X", min=0.01, max=100, help="Its share of the turns.")
    ] = 1
    note: Annotated[str, typer.Option(metavar="TEXT", help="What it is for.")] = ""

    def limits(self) -> Limits:
        """Return the limits; 0 leaves one to the gateway."""
        return Limits(self.max_queued, self.max_running, self.tokens_per_minute, self.weight)


@_keys.callback()
def keys() -> None:
    """Make, list and revoke API keys. With the first key, every request needs one."""


@_keys.command(cls=PlainCommand)
@unpacked
def create(flags: KeyFlags, json: Json = False, redis: RedisUrl = "") -> None:
    """Make a key and print it: it is shown this one time, only its hash is stored.

    Limits of 0 are the gateway's own. Give all keys of a tenant the same.
    """
    if not math.isfinite(flags.days):
        raise typer.BadParameter("a number of days, please", param_hint="--days")
    if not is_name(flags.tenant):
        raise typer.BadParameter(
            "a tenant has letters, digits and ._/:@+- only", param_hint="--tenant"
        )

    async def make(store: ApiKeyStore) -> tuple[ApiKey, str]:
        key, token = await store.create(
            flags.tenant,
            tuple(flags.scopes or (Scope.READ, Scope.SUBMIT)),
            lifetime_s=flags.days * _DAY_S,
            note=flags.note,
            limits=flags.limits(),
        )
        return key, str(token)

    key, token = _with_store(redis, make)
    if json:
        write_json({**_entry(key), "key": token})
        return
    typer.echo(token)
    note(f"{key.id} is for {key.tenant}; keep it, nobody can show it again")


@_keys.command("list", cls=PlainCommand)
def list_keys(json: Json = False, redis: RedisUrl = "") -> None:
    """List all keys, the oldest first."""
    found = _with_store(redis, ApiKeyStore.all)
    if json:
        write_json([_entry(key) for key in found])
        return
    header = ("ID", "TENANT", "SCOPES", "LIMITS", "CREATED", "EXPIRES", "NOTE")
    rows = [
        (
            key.id,
            key.tenant,
            ",".join(key.scopes),
            _limits(key.limits),
            _date(key.created_ms),
            _date(key.expires_ms) if key.expires_ms else "-",
            key.note or "-",
        )
        for key in found
    ]
    write_table(header, rows)


@_keys.command(cls=PlainCommand)
def revoke(key_id: KeyId, json: Json = False, redis: RedisUrl = "") -> None:
    """Revoke the key ID; gateways refuse it within two seconds."""

    async def drop(store: ApiKeyStore) -> bool:
        return await store.revoke(key_id)

    if not _with_store(redis, drop):
        if "_" in key_id:  # the key itself, given by mistake: its secret is not to be repeated
            raise HeadraceError("that is no ID; a key's ID is what `hr_` and the next `_` enclose")
        raise HeadraceError(f"there is no key {key_id}; `headrace keys list` shows all")
    if json:
        write_json({"id": key_id, "revoked": True})
    else:
        note(f"{key_id} is revoked")


@_keys.command(cls=PlainCommand)
def reset(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False, redis: RedisUrl = ""
) -> None:
    """Delete all keys: gateways on loopback, or with --insecure, let everybody in again."""
    if not yes:
        typer.confirm("Delete all API keys?", abort=True)
    _with_store(redis, ApiKeyStore.reset)
    note("there are no keys any more")


def _with_store(redis: str, do: Callable[[ApiKeyStore], Awaitable[Result]]) -> Result:
    async def run(client: Redis, keys: Keys) -> Result:
        try:
            return await do(ApiKeyStore(client, keys))
        except msgspec.MsgspecError as error:
            raise HeadraceError("a key was made by another version: upgrade this one") from error

    return with_redis(redis, run)


def _limits(limits: Limits) -> str:
    """Return the limits that are set, in few words."""
    told = {
        "queued": limits.max_queued,
        "running": limits.max_running,
        "tokens/min": limits.tokens_per_minute,
        "weight": limits.weight if limits.weight != 1 else 0,
    }
    return ", ".join(f"{value:g} {name}" for name, value in told.items() if value) or "-"


def _entry(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "scopes": list(key.scopes),
        "created_at": _date(key.created_ms),
        "expires_at": _date(key.expires_ms) if key.expires_ms else None,
        "note": key.note,
        "limits": msgspec.to_builtins(key.limits),
    }


def _date(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
