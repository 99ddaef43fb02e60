"""Keys, sessions and host CAs in PuTTY's own formats."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from monoport.auth.keys import generate
from monoport.client import putty
from monoport.client.profile import Home
from monoport.errors import Failure

from .conftest import Cas, signed_in


@pytest.mark.parametrize("_number", range(4))  # private numbers with and without a leading zero octet
def test_puttygen_reads_the_key(home: Home, cas: Cas, tmp_path: Path, need: Callable[[str], str], _number: int) -> None:
    profile = signed_in(home, cas, 3080)
    paths = home.keys(profile)
    paths.key.write_text(generate().private)
    putty.write_key(paths)
    key = paths.folder / f"{paths.user}.ppk"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    shown = subprocess.run(
        [need("puttygen"), key, "-O", "private-openssh", "-o", tmp_path / "back"], check=False, capture_output=True
    )
    assert shown.returncode == 0, shown.stderr
    words = [need("ssh-keygen"), "-y", "-f"]
    ours, back = (
        subprocess.run([*words, path], check=True, capture_output=True).stdout.split()[:2]
        for path in (paths.key, tmp_path / "back")
    )
    assert ours == back


def test_the_settings_lie_where_putty_looks(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path)}
    assert putty.folder(environment) == tmp_path / ".putty"
    (tmp_path / ".config/putty").mkdir(parents=True)
    assert putty.folder(environment) == tmp_path / ".config/putty"
    assert putty.folder({**environment, "PUTTYDIR": str(tmp_path / "own")}) == tmp_path / "own"


@pytest.mark.parametrize(("cluster", "says"), [("github.com", "no --ca-pin"), ("com", "too broad")])
def test_a_cluster_that_nobody_vouches_for_is_not_trusted(home: Home, tmp_path: Path, cluster: str, says: str) -> None:
    profile = replace(signed_in(home, Cas(cluster), 3080, host="evil.example"), trust="insecure")
    with pytest.raises(Failure, match=says):
        putty.set_up(home, profile, {"HOME": str(tmp_path)})
    assert not (tmp_path / ".putty").exists()


def test_percent_signs_and_blanks_of_paths_stay_what_they_are(tmp_path: Path, cas: Cas) -> None:
    home = Home(tmp_path / "with blank and 100%" / "tsh")
    profile = replace(signed_in(home, cas, 3080), trust="pin")
    putty.set_up(home, profile, {"HOME": str(tmp_path)})
    lines = (tmp_path / ".putty/sessions/monoport-example.com").read_text().splitlines()
    command = next(line for line in lines if line.startswith("ProxyTelnetCommand="))
    assert f"'TSH_HOME={tmp_path}/with blank and 100%%/tsh'" in command
    assert "%host:%port" in command
    putty.tear_down(home, profile, {"HOME": str(tmp_path)})
    assert [path for path in (tmp_path / ".putty").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("host", ["`id>hit`x.example.com", "x';id>hit;'.example.com", 'x)";id>hit;".example.com', "x"])
def test_a_host_that_is_a_command_is_a_host(
    tmp_path: Path, cas: Cas, need: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    script = tmp_path / "seen.sh"
    script.write_text('for last; do :; done; printf %s "$last" >seen\n')
    monkeypatch.setattr(putty, "program", lambda: ["sh", str(script)])
    environment = {"HOME": str(tmp_path), "PUTTYDIR": str(tmp_path / "putty")}
    putty.set_up(
        Home(tmp_path / ".tsh"), replace(signed_in(Home(tmp_path / ".tsh"), cas, 3080), trust="pin"), environment
    )
    words = [need("plink"), "-batch", "-load", "monoport-example.com", f"alice@{host}", "true"]
    subprocess.run(words, cwd=tmp_path, env={**os.environ, **environment}, check=False, capture_output=True, timeout=30)
    assert (tmp_path / "seen").read_text() == f"{host}:22"
    assert not (tmp_path / "hit").exists()
