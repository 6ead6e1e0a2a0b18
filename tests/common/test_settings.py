"""Settings: where a value comes from, and the one line about a wrong one."""

import os
import re
from pathlib import Path

import pytest

from common.errors import StartupFailed
from common.settings import ENV_PREFIX, as_environment, load, origins


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty configuration directory and no variable of ours."""
    for variable in list(os.environ):
        if variable.startswith(ENV_PREFIX):
            monkeypatch.delenv(variable)
    for variable in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    return tmp_path


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, home: Path) -> Path:
    """A settings file that ``HEADRACE_CONFIG`` names; the test writes it."""
    path = home / "settings.toml"
    monkeypatch.setenv("HEADRACE_CONFIG", str(path))
    return path


def _refusal(flags: dict[str, object] | None = None) -> str:
    with pytest.raises(StartupFailed) as caught:
        load(flags)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_without_anything_there_are_defaults(home: Path) -> None:
    """Every setting has a default, and the directories follow the XDG variables."""
    settings = load()
    assert settings.port == 8700
    assert settings.data_dir == home / "xdg_data_home" / "headrace"
    assert settings.cache_dir == home / "xdg_cache_home" / "headrace"
    assert set(origins().values()) == {"default"}


def test_flag_beats_environment_beats_file_beats_default(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer gives way to the one above it, and ``origins`` names the one that counts."""
    config.write_text('host = "file"\nport = 1\nlease_s = 1\n')
    monkeypatch.setenv("HEADRACE_PORT", "2")
    monkeypatch.setenv("HEADRACE_LEASE_S", "2")
    flags = {"lease_s": 3, "capacity": None}
    settings = load(flags)
    assert (settings.host, settings.port, settings.lease_s) == ("file", 2, 3)
    assert settings.capacity == 32
    found = origins(flags)
    assert found["host"] == str(config)
    assert found["port"] == "environment"
    assert found["lease_s"] == "flag"
    assert found["capacity"] == "default"


def test_the_usual_file_is_read(home: Path) -> None:
    """Without ``HEADRACE_CONFIG`` the file in the configuration directory counts, if there."""
    folder = home / "xdg_config_home" / "headrace"
    folder.mkdir(parents=True)
    (folder / "headrace.toml").write_text('model = "mine"')
    assert load().model == "mine"


def test_a_named_file_replaces_the_usual_one(config: Path, home: Path) -> None:
    """``HEADRACE_CONFIG`` is instead of the usual file, not on top of it."""
    folder = home / "xdg_config_home" / "headrace"
    folder.mkdir(parents=True)
    (folder / "headrace.toml").write_text("port = 1")
    config.write_text("capacity = 9")
    settings = load()
    assert (settings.port, settings.capacity) == (8700, 9)


def test_an_unknown_variable_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt variable is not silently without effect."""
    monkeypatch.setenv("HEADRACE_PROT", "1")
    assert _refusal() == "HEADRACE_PROT is not a setting; see `headrace config show`"


def test_the_clients_variable_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """``HEADRACE_URL`` belongs to the client and does not stop a process."""
    monkeypatch.setenv("HEADRACE_URL", "http://127.0.0.1:8700")
    assert load().port == 8700


def test_an_unknown_name_in_the_file_stops_the_start(config: Path) -> None:
    """A misspelt setting is named with its file."""
    config.write_text("port = 1\nprot = 2\n")
    assert _refusal() == f"{config}: 'prot' is not a setting; see `headrace config show`"


@pytest.mark.parametrize("text", ["port = ", "[[", 'a = "\x00"'])
def test_a_broken_file_stops_the_start(text: str, config: Path) -> None:
    """What is no TOML is named with its file."""
    config.write_text(text)
    assert _refusal().startswith(f"cannot read the settings file {config}: ")


def test_a_file_that_is_no_text_stops_the_start(config: Path) -> None:
    """Bytes that are no UTF-8 are one line too."""
    config.write_bytes(b"\xff\xfe")
    assert _refusal().startswith(f"cannot read the settings file {config}: ")


def test_a_missing_named_file_stops_the_start(config: Path) -> None:
    """Who names a file wants it read."""
    assert _refusal().startswith(f"cannot read the settings file {config}: ")


def test_a_path_through_a_file_is_a_missing_file(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """A configuration directory that is none has no settings file, which is fine."""
    (home / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "file"))
    assert load().port == 8700


def test_a_usual_file_that_cannot_be_looked_at_stops_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A configuration directory that the system refuses is one line, not a traceback."""
    monkeypatch.setenv("XDG_CONFIG_HOME", "/" + "x" * 5000)
    assert _refusal().startswith("cannot read the settings file /xxx")


def test_a_wrong_flag_is_named_as_it_was_given() -> None:
    """The line shows the flag, the value and what is wrong."""
    assert re.fullmatch(r"--port = 'high': .*valid integer.*", _refusal({"port": "high"}))


def test_a_wrong_variable_is_named_as_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line shows the variable, the value and what is wrong."""
    monkeypatch.setenv("HEADRACE_ENGINE", "steam")
    assert re.fullmatch(r"HEADRACE_ENGINE = 'steam': .*'local', .* or 'fake'.*", _refusal())


def test_a_wrong_value_in_the_file_is_named_as_it_was_given(config: Path) -> None:
    """The line shows the setting, the file, the value and what is wrong."""
    config.write_text("capacity = 0")
    assert _refusal().startswith(f"capacity in {config} = 0: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("lease_s", 0), ("port", 65_536), ("key_prefix", "a:b"), ("key_prefix", ""), ("prot", 1)],
)
def test_values_out_of_bounds_are_refused(name: str, value: object) -> None:
    """Bounds are checked at the start, not at the first use."""
    assert _refusal({name: value}).startswith(f"--{name.replace('_', '-')} = {value!r}: ")


def test_a_child_process_gets_the_same_settings(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """What ``as_environment`` returns loads as the settings it was made of, also odd ones."""
    flags = {
        "port": 0,
        "insecure": True,
        "lease_s": 0.25,
        "data_dir": home / "with space",
        "redis": "redis://:pa%20ss@127.0.0.1:1/0",
        "default_model": "",
    }
    settings = load(flags)
    for variable, value in as_environment(settings).items():
        monkeypatch.setenv(variable, value)
    assert load() == settings


def test_settings_do_not_change() -> None:
    """What a process was started with is what it goes on with."""
    with pytest.raises(ValueError, match="frozen"):
        load().port = 1
