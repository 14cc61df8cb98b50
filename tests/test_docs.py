"""The README shows the command line as it is."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from clh import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NEED_NO_MODEL = ("clh check ", "clh lookup ", "clh schema")


def commands(app: typer.Typer, parents: str = "clh") -> Iterator[str]:
    for command in app.registered_commands:
        assert command.callback is not None
        yield f"{parents} {command.name or command.callback.__name__}"
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance, f"{parents} {group.name}")


def sessions() -> Iterator[tuple[str, str]]:
    """Commands of the README's console blocks that need no model, and what they print there."""
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for session in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, printed = session.partition("\n")
            if command.startswith(NEED_NO_MODEL):
                yield command, printed


def test_the_table_of_commands_is_all_commands() -> None:
    table = README.partition("| command | does |\n")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)
    told = [name for cell in cells for name in re.findall(r"`(clh(?: [a-z]+)+)", cell)]
    assert sorted(told) == sorted(commands(cli.app))


def test_every_command_has_an_example() -> None:
    for app in (cli.app, cli.index_app, cli.audit_app):
        for command in app.registered_commands:
            assert "Example: " in (command.epilog or "")


@pytest.mark.parametrize(("command", "printed"), [*sessions()])
def test_sessions_are_what_is_printed(
    command: str,
    printed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == printed
