"""``keys create``, ``list``, ``revoke`` and ``reset``: API keys, made by who can reach Redis."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, TypeVar

import msgspec
import typer
from redis.exceptions import RedisError

from common.api_keys import ApiKey, ApiKeyStore, Scope
from common.connections import command_client
from common.errors import HeadraceError
from common.keys import Keys
from common.names import is_name
from common.settings import load
from headrace.addresses import lacks_password, masked
from headrace.default_server import default_server
from headrace.flags import Json, PlainCommand
from headrace.terminal import note, write_json, write_table

app = typer.Typer(rich_markup_mode=None)
_keys = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(_keys, name="keys", help="Make, list and revoke API keys.")

_DAY_S = 86_400
Result = TypeVar("Result")

KeyId = Annotated[str, typer.Argument(metavar="ID", hidden=True)]
RedisUrl = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="Redis of the gateways.",
        show_default="that of a running `headrace up`, else the setting",
    ),
]
Tenant = Annotated[str, typer.Option(metavar="NAME", help="Whose jobs and prompt IDs it opens.")]
Scopes = Annotated[
    list[Scope], typer.Option("--scope", help="What it may do; give it several times.")
]
Days = Annotated[
    float, typer.Option("--days", metavar="N", min=0, max=36_500, help="It expires then, 0: not.")
]


@_keys.callback()
def keys() -> None:
    """Make, list and revoke API keys. With the first key, every request needs one."""


@_keys.command(cls=PlainCommand)
def create(
    tenant: Tenant = "default",
    scopes: Scopes = [Scope.READ, Scope.SUBMIT],  # noqa: B006 - typer copies it
    days: Days = 0,
    remark: Annotated[str, typer.Option("--note", metavar="TEXT", help="What it is for.")] = "",
    json: Json = False,
    redis: RedisUrl = "",
) -> None:
    """Make a key and print it: it is shown this one time, only its hash is stored."""
    if not math.isfinite(days):
        raise typer.BadParameter("a number of days, please", param_hint="--days")
    if not is_name(tenant):
        raise typer.BadParameter(
            "a tenant has letters, digits and ._/:@+- only", param_hint="--tenant"
        )

    async def make(store: ApiKeyStore) -> tuple[ApiKey, str]:
        key, token = await store.create(
            tenant, tuple(scopes), lifetime_s=days * _DAY_S, note=remark
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
    header = ("ID", "TENANT", "SCOPES", "CREATED", "EXPIRES", "NOTE")
    rows = [
        (
            key.id,
            key.tenant,
            ",".join(key.scopes),
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
    settings = load()
    url = redis or default_server(settings)
    if lacks_password(url):
        raise HeadraceError(f"the password of {url} is not kept; name that server with --redis")

    async def run() -> Result:
        client = command_client(url, max_connections=1)
        try:
            return await do(ApiKeyStore(client, Keys(settings.key_prefix)))
        except (RedisError, OSError) as error:
            raise HeadraceError(f"no Redis answers at {masked(url)}: {error}") from error
        except msgspec.MsgspecError as error:
            raise HeadraceError("a key was made by another version: upgrade this one") from error
        finally:
            await client.aclose()

    return asyncio.run(run())


def _entry(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "scopes": list(key.scopes),
        "created_at": _date(key.created_ms),
        "expires_at": _date(key.expires_ms) if key.expires_ms else None,
        "note": key.note,
    }


def _date(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
