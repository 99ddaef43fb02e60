"""The daemon's command: what it takes, prints and returns."""

from pathlib import Path

import pytest

from monoport.cli.monoport import group
from monoport.cli.run import execute
from monoport.daemon import start
from monoport.errors import Failure


def test_start_runs_the_configuration_and_returns_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "monoport.yaml"
    file.write_text("version: v3\nproxy_service: {enabled: yes, public_addr: example.com}\n")
    seen = []

    def run(config: object) -> int:
        seen.append(config)
        return 3

    monkeypatch.setattr(start, "run", run)
    assert execute(group, ["start", "-c", str(file)]) == 3
    assert seen[0].cluster_name == "example.com"


def test_a_bad_configuration_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "monoport.yaml"
    file.write_text("version: v3\nproxy_servise: {}\n")
    assert execute(group, ["start", "-c", str(file)]) == 1
    shown = capsys.readouterr()
    expected = f'monoport: {file}:2:1: unknown key "proxy_servise"; did you mean "proxy_service"?\n'
    assert (shown.out, shown.err) == ("", expected)


def test_what_the_daemon_cannot_do_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "monoport.yaml"
    file.write_text("version: v3\nproxy_service: {enabled: yes}\n")

    def run(_config: object) -> int:
        raise Failure("address 0.0.0.0:3080 is in use")

    monkeypatch.setattr(start, "run", run)
    assert execute(group, ["start", "-c", str(file)]) == 1
    assert capsys.readouterr().err == "monoport: address 0.0.0.0:3080 is in use\n"


@pytest.mark.parametrize("arguments", [["start"], ["demo", "--port", "0"], ["nothing"], ["start", "-c"]])
def test_wrong_arguments_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(group, arguments) != 0
    assert capsys.readouterr().err.count("\n") == 1


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(group, ["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in ("start", "configure", "demo"))
