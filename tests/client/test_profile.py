"""Profiles: layout, several proxies, and what is left after a logout."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from monoport.client import files
from monoport.client.names import Address
from monoport.client.profile import Home, user_home
from monoport.errors import Failure

from .conftest import Cas, database_login, signed_in


def test_home_is_tsh_home_else_dot_tsh_of_home() -> None:
    assert Home.of({"TSH_HOME": "/elsewhere", "HOME": "/home/alice"}).path == Path("/elsewhere")
    assert Home.of({"HOME": "/home/alice"}).path == Path("/home/alice/.tsh")
    assert user_home({"HOME": "/home/alice"}) == Path("/home/alice")


def test_a_profile_is_read_back_as_it_was_written(home: Home, cas: Cas) -> None:
    profile = signed_in(home, cas, 3080, database_ports={"mysql_listen_addr": 3036})
    assert home.load("localhost") == profile
    assert stat.S_IMODE((home.path / "localhost.json").stat().st_mode) == 0o600
    assert (home.path / "current-profile").read_text() == "localhost\n"


def test_the_last_login_is_current_and_a_nodes_cluster_chooses_another(home: Home, cas: Cas) -> None:
    first = signed_in(home, cas, 3080, host="one.example")
    second = signed_in(home, Cas("other.net"), 3081, host="two.example")
    assert home.choose() == second
    assert home.choose("one.example:3080") == first
    assert home.choose(node="node.example.com") == first
    assert home.choose(node="node.other.net.") == second
    assert home.choose(node="node") == second
    assert [each.proxy.host for each in home.profiles()] == ["one.example", "two.example"]


def test_without_a_login_the_command_to_log_in_is_named(home: Home) -> None:
    with pytest.raises(Failure, match="not logged in: tsh login --proxy=HOST:PORT"):
        home.choose()
    with pytest.raises(Failure, match=r"not logged in at here\.example:443: tsh login --proxy=here\.example:443"):
        home.choose("https://here.example:443/")


def test_an_ended_login_names_the_command_to_renew_it(home: Home, cas: Cas) -> None:
    profile = signed_in(home, cas, 3080, lasts=timedelta(minutes=-5))
    with pytest.raises(Failure, match="log in again: tsh login --proxy=localhost:3080 --user=alice"):
        profile.check()
    signed_in(home, cas, 3080, host="other").check(datetime.now(UTC))


def test_logout_removes_this_users_files_and_nobody_elses(home: Home, cas: Cas) -> None:
    bob = signed_in(home, cas, 3080, user="bob", host="one.example")
    paths = home.keys(bob)
    other = signed_in(home, cas, 3080, user="alice", host="two.example")
    for name in ("carol", "carol-x509.pem"):
        (paths.folder / name).write_text("hers")
    database_login(home, cas, bob, "orders")
    home.forget(bob)
    assert sorted(path.name for path in paths.folder.iterdir()) == [
        "carol",
        "carol-x509.pem",
        "certs.pem",
        "known_hosts",
    ]
    assert home.load("one.example") is None
    assert home.current() == "two.example"
    home.forget(other)
    assert home.current() is None
    assert not home.keys(other).folder.exists()


def test_forgetting_the_current_proxy_makes_another_one_current(home: Home, cas: Cas) -> None:
    signed_in(home, cas, 3080, host="one.example")
    second = signed_in(home, cas, 3081, host="two.example")
    home.forget(second)
    assert home.current() == "one.example"


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"proxy": 1}', "\x00\xff"])
def test_a_broken_profile_is_named_with_its_file(home: Home, cas: Cas, content: str) -> None:
    signed_in(home, cas, 3080)
    path = home.path / "localhost.json"
    path.write_text(content)
    with pytest.raises(Failure, match=r"localhost\.json: not a profile"):
        home.choose()


@pytest.mark.parametrize(("part", "value"), [("user", "../root"), ("cluster", "a/b"), ("proxy", "x y")])
def test_a_profile_cannot_lead_outside_its_folder(home: Home, cas: Cas, part: str, value: str) -> None:
    import json

    signed_in(home, cas, 3080)
    path = home.path / "localhost.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: value}))
    with pytest.raises(Failure, match="not a profile"):
        home.load("localhost")


def test_a_replaced_file_is_never_seen_in_part_and_a_failed_one_leaves_the_old(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.replace(path, b"old")
    before = path.stat().st_ino
    files.replace(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_ino != before
    with pytest.raises(TypeError):
        files.replace(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_linked_file_stays_linked(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    files.replace(link, b"new", 0o644)
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("example.com", "example.com", 3080),
        ("Example.COM.:443", "example.com", 443),
        ("https://example.com:8443/", "example.com", 8443),
        ("[::1]:3080", "::1", 3080),
        ("127.0.0.1:65535", "127.0.0.1", 65535),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    address = Address.parse(text)
    assert (address.host, address.port) == (host, port)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", ":443", "a:b", "a:0", "a:65536", "a b:1", "../x:1", "-o:1", "u@h:1", "::1", "a:1:2"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(Failure):
        Address.parse(text)


def test_a_file_in_a_folders_place_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, file / "inner"):
        with pytest.raises(Failure, match=rf"{file} is a file: expected a folder"):
            files.make_folder(path)
    files.make_folder(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
