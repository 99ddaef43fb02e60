"""The words of `tsh ssh` and `tsh scp`, and the configuration for the system's OpenSSH."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from monoport.client.profile import Home
from monoport.client.sshconfig import ssh_config
from monoport.client.words import pick_login, scp_words, ssh_words, with_login
from monoport.errors import Failure

from .conftest import Cas, signed_in


@pytest.mark.parametrize(
    ("words", "options", "login", "host", "command"),
    [
        (["node"], (), "", "node", ()),
        (["alice@node", "ls", "-l"], (), "alice", "node", ("ls", "-l")),
        (["-tA", "-L", "8080:web:80", "node"], ("-t", "-A", "-L", "8080:web:80"), "", "node", ()),
        (["-l", "bob", "node", "id"], (), "bob", "node", ("id",)),
        (["node", "-t", "top", "-b"], ("-t",), "", "node", ("top", "-b")),
        (["a@corp@node", "--", "-x"], (), "a@corp", "node", ("-x",)),
    ],
)
def test_ssh_words(words: list[str], options: tuple[str, ...], login: str, host: str, command: tuple[str, ...]) -> None:
    found = ssh_words(words)
    assert (found.options, found.login, found.host, found.command) == (options, login, host, command)


@pytest.mark.parametrize(
    "words", [[], ["-t"], ["-J", "x", "node"], ["-?", "node"], ["alice@"], ["--", "-oProxyCommand=x"]]
)
def test_ssh_words_that_name_no_node_are_refused(words: list[str]) -> None:
    with pytest.raises(Failure):
        ssh_words(words)


def test_scp_words() -> None:
    found = scp_words(["-rp", "site/", "a:b.txt", "alice@web:/srv/", "./odd:name"])
    assert found.options == ("-r", "-p")
    assert found.hosts == ("a", "web")
    assert found.logins == ("", "alice")
    assert with_login("a:b.txt", "root") == "root@a:b.txt"
    assert with_login("alice@web:/srv/", "root") == "alice@web:/srv/"
    assert with_login("./odd:name", "root") == "./odd:name"


@pytest.mark.parametrize("words", [[], ["x"], ["x", "y"], ["-J", "j", "x", "n:y"], ["/a:b", "c"], ["x", "alice@:y"]])
def test_scp_words_without_a_node_are_refused(words: list[str]) -> None:
    with pytest.raises(Failure):
        scp_words(words)


def test_the_login_is_the_one_asked_for_else_ones_own_else_the_only_one() -> None:
    assert pick_login("root", ["alice", "root"], "bob") == "root"
    with pytest.raises(Failure, match="login 'root' is not one of yours: alice"):
        pick_login("root", ["alice"], "bob")
    assert pick_login("", ["alice", "bob"], "bob") == "bob"
    assert pick_login("", ["deploy"], "bob") == "deploy"
    with pytest.raises(Failure, match="your logins are alice, carol"):
        pick_login("", ["alice", "carol"], "bob")
    with pytest.raises(Failure, match="no login on any node"):
        pick_login("", [], "bob")


def test_openssh_reads_the_configuration_as_we_meant_it(tmp_path: Path, cas: Cas, need: Callable[[str], str]) -> None:
    home = Home(tmp_path / "with blank and 100%" / "tsh")
    profile = signed_in(home, cas, 3080)
    config = tmp_path / "config"
    config.write_text(ssh_config(home, profile, {"HOME": str(tmp_path)}))
    done = subprocess.run(
        [need("ssh"), "-G", "-F", config, "alice@node.example.com"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    paths = home.keys(profile)
    percent = str(paths.key).replace("%", "%%")
    assert found["identityfile"] in (percent, f'"{percent}"', str(paths.key))
    assert found["identitiesonly"] == "yes"
    assert found["stricthostkeychecking"] in ("yes", "true")
    assert "--proxy=localhost:3080" in found["proxycommand"]
    assert "--user=%r %h:%p" in found["proxycommand"]
    assert f"TSH_HOME={home.path}".replace("%", "%%") in found["proxycommand"]
    assert (found["serveraliveinterval"], found["serveralivecountmax"]) == ("7", "2"), "a dead peer is noticed"
    other = subprocess.run(
        [need("ssh"), "-G", "-F", config, "node.elsewhere"], capture_output=True, text=True, check=True, timeout=30
    )
    assert "tsh" not in other.stdout
    assert "serveraliveinterval 0" in other.stdout
    words = [need("ssh"), "-G", "-F", config, "-p", "3080", "localhost"]
    jump = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30)
    assert "serveraliveinterval 7" in jump.stdout, "the hop of ssh -J, too"


def test_the_default_home_is_not_spelled_out(tmp_path: Path, cas: Cas) -> None:
    home = Home(tmp_path / ".tsh")
    profile = signed_in(home, cas, 3080)
    text = ssh_config(home, profile, {"HOME": str(tmp_path)})
    assert "TSH_HOME" not in text
    assert text.splitlines()[1] == "Host *.example.com"
