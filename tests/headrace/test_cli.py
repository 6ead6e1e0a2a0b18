"""The command line as a whole: what there is, and how it ends."""

import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from typer.testing import Result

from common.settings import Settings
from headrace.cli import COMMANDS, app
from headrace.commands import gateway, worker

Headrace = Callable[..., Result]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(headrace: Headrace, command: str) -> None:
    """The command's help begins with the line that the overview has for it."""
    overview = " ".join(headrace("--help").output.split())
    assert f"{command} {COMMANDS[command][1]}" in overview
    result = headrace(command, "--help")
    assert result.exit_code == 0
    assert COMMANDS[command][1] in result.output


def test_the_overview_imports_no_command() -> None:
    """``headrace --help`` is quick, because it loads nothing of what a command needs."""
    code = (
        "import sys; from typer.testing import CliRunner; from headrace.cli import app; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0; "
        "print(sorted({'httpx2', 'pydantic', 'redis', 'rich', 'torch'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert answer.stdout.strip() == b"[]"


def test_version(headrace: Headrace) -> None:
    """The version is one line."""
    result = headrace("--version")
    assert (result.exit_code, result.output) == (0, "headrace 0.1.0\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["jbos"], "Did you mean 'jobs'?"),
        (["run"], "PROMPT is missing"),
        (["jobs", "--limit", "0"], "--limit"),
        (["up", "--engine", "magic"], "--engine"),
        (["run", "hi", "--raw", "--system", "x"], "leave --raw out"),
        (["run", "hi", "--append"], "need a --prompt-id"),
        (["run", "hi", "--continue", "--prompt-id", "x"], "goes without PROMPT"),
        (["run", "hi", "--logit-bias", "x=1"], "ID=BIAS"),
    ],
)
def test_wrong_usage_is_code_2(headrace: Headrace, arguments: list[str], said: str) -> None:
    """The message names what is wrong."""
    result = headrace(*arguments)
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "\udcff"], "argument 2 is not UTF-8 text"),
        (["follow", "\udcff"], "argument 2 is not UTF-8 text"),
        (["run", "x", "--system", "\udcff"], "argument 4 is not UTF-8 text"),
        (["run", "-"], "standard input is not UTF-8 text"),
        (["submit", "-"], "standard input is not UTF-8 text"),
    ],
)
def test_what_is_no_text_is_wrong_usage(
    headrace: Headrace, arguments: list[str], said: str
) -> None:
    """Bytes that are no UTF-8 are refused before anything is sent."""
    result = headrace(*arguments, stdin=b"\xff")
    assert result.exit_code == 2
    assert result.stderr.count("Error: ") == 1
    assert said in result.stderr


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "config"])
def test_help_shows_no_python(headrace: Headrace, command: str) -> None:
    """What a flag takes is said in words."""
    output = headrace(command, "--help").output
    assert "{" not in output
    assert not re.search(r"<(str|int|float|path|list.*|.* range)>", output)


def test_help_shows_the_settings_defaults(headrace: Headrace) -> None:
    """The help, which loads no settings, says what they say."""
    output = " ".join(headrace("up", "--help").output.split())
    for name in ("host", "port", "workers", "capacity"):
        default = Settings.model_fields[name].default
        assert re.search(rf"--{name} [A-Z]+ [^\[]*\[default: {default}\]", output)


SCHEMES = (
    "url should begin with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:6379", SCHEMES),
        ("http://localhost:6379", SCHEMES),
        (
            "redis+sentinel://localhost",
            "url should end with the name of the service: /mymaster",
        ),
        ("redis://localhost:here", "url should have a valid port"),
    ],
)
def test_a_url_that_is_none_of_redis_is_a_failed_start(
    headrace: Headrace, monkeypatch: pytest.MonkeyPatch, url: str, said: str
) -> None:
    """The flag or the variable is named in one line."""
    for command in ("gateway", "worker", "up"):
        result = headrace(command, "--redis", url)
        assert (result.exit_code, result.output) == (3, f"headrace: --redis = {url!r}: {said}\n")
    monkeypatch.setenv("HEADRACE_REDIS", url)
    result = headrace("doctor")
    assert result.exit_code == 3
    assert result.output == f"headrace: HEADRACE_REDIS = {url!r}: {said}\n"


@pytest.mark.parametrize("url", ["redis://:s3cret@h:x", "redis://h:x?password=s3cret"])
def test_no_password_is_in_the_line(headrace: Headrace, url: str) -> None:
    """The flag is named, the value is not shown."""
    result = headrace("worker", "--redis", url)
    said = "headrace: --redis = …: url should have a valid port\n"
    assert (result.exit_code, result.output) == (3, said)


def test_a_failed_start_is_code_3(headrace: Headrace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong setting stops every process with one line and no traceback."""
    monkeypatch.setenv("HEADRACE_PORT", "high")
    for command in ("gateway", "worker", "up"):
        result = headrace(command)
        assert result.exit_code == 3
        assert result.output.startswith("headrace: HEADRACE_PORT = 'high': ")
        assert result.output.count("\n") == 1


def test_the_processes_get_the_flags(headrace: Headrace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags become settings, and the process's exit code is the command's."""
    seen: list[Settings] = []

    def process(code: int) -> Callable[[Settings], int]:
        def serve(settings: Settings) -> int:
            seen.append(settings)
            return code

        return serve

    monkeypatch.setattr(gateway, "serve", process(0))
    monkeypatch.setattr(worker, "serve", process(1))
    assert headrace("gateway", "--port", "0", "--insecure").exit_code == 0
    assert headrace("worker", "--engine", "fake", "--capacity", "9").exit_code == 1
    assert (seen[0].port, seen[0].insecure) == (0, True)
    assert (seen[1].engine, seen[1].capacity) == ("fake", 9)


def test_a_missing_library_is_a_failed_start(
    headrace: Headrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's extra is named where it is needed."""

    def serve(_settings: object) -> int:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(worker, "serve", serve)
    result = headrace("worker")
    assert result.exit_code == 3
    assert result.output == (
        "headrace: the local engine needs torch: pip install 'headrace[worker]'\n"
    )


def test_the_app_is_one(headrace: Headrace) -> None:
    """Every command of the table exists in its module, and no module hides another one."""
    assert app.info.name == "headrace"
    assert headrace().exit_code == 2
