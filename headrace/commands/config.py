"""``config show``: every setting, its value and where that comes from."""

from typing import Any

import typer

from common.errors import StartupFailed
from common.settings import Settings, load, origins
from headrace.addresses import masked
from headrace.flags import Json
from headrace.terminal import write_json, write_table

app = typer.Typer(rich_markup_mode=None)
_config = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(_config, name="config", help="Show the settings.")


@_config.callback()
def config() -> None:
    """Show the settings."""


@_config.command()
def show(json: Json = False) -> None:
    """Show every setting, its value and where that comes from.

    Where a setting is wrong, it shows the defaults, so that the right name can be found.
    """
    try:
        settings, sources = load(), origins()
    except StartupFailed:
        _print(
            Settings.model_validate({}), dict.fromkeys(Settings.model_fields, "default"), json=json
        )
        raise
    _print(settings, sources, json=json)


def _print(settings: Settings, sources: dict[str, str], *, json: bool) -> None:
    secrets = {"redis": masked(settings.redis), "upstream_key": settings.upstream_key and "***"}
    values = settings.model_dump(mode="json") | secrets
    if json:
        write_json([_entry(name, value, sources[name]) for name, value in values.items()])
        return
    rows = [(name, str(value), sources[name]) for name, value in values.items()]
    write_table(("SETTING", "VALUE", "FROM"), rows)


def _entry(name: str, value: Any, source: str) -> dict[str, Any]:
    about = Settings.model_fields[name].description
    return {"name": name, "value": value, "from": source, "description": about}
