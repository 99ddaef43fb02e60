"""Logging in: whom to trust, when the password leaves, and the files that are left."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path
from typing import Any

import pytest

from monoport.auth.authorities import CaKind, pin
from monoport.client.front import blind_context, web_context
from monoport.client.login import Request, login
from monoport.client.profile import Home
from monoport.errors import Failure

from .conftest import PASSWORD, Cas, WebProxy, server_context


def refuse_password() -> str:
    raise AssertionError("the password was asked for")


def warnings() -> list[str]:
    return []


def pin_of(cas: Cas) -> str:
    return pin(cas.of[CaKind.HOST].pem)


async def sign_in(home: Home, web: WebProxy, said: list[str] | None = None, **parts: Any) -> Any:
    password = parts.pop("password", lambda: PASSWORD)
    request = Request(web.address, parts.pop("user", "alice"), **parts)
    return await login(home, request, password, (said if said is not None else []).append)


async def test_pin_login_writes_every_file_private(home: Home, cas: Cas) -> None:
    async with WebProxy(cas).running(server_context(cas)) as web:
        profile = await sign_in(home, web, ca_pin=pin_of(cas))
    folder = home.path / "keys" / "127.0.0.1"
    assert {path.name for path in folder.iterdir()} == {
        "certs.pem", "alice", "alice-x509.pem", "alice-cert.pub", "known_hosts", ".lock",
    }  # fmt: skip
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for each in (home.path, home.path / "keys", folder):
        assert stat.S_IMODE(each.stat().st_mode) == 0o700, each
    assert b"BEGIN PRIVATE KEY" in (folder / "alice").read_bytes()
    assert (folder / "certs.pem").read_text().strip() == cas.of[CaKind.HOST].pem.strip()
    assert home.current() == "127.0.0.1"
    assert home.load("127.0.0.1") == profile
    assert profile.trust == "pin"
    assert profile.logins == ("alice", "root")


async def test_a_login_brings_the_ports_of_databases_whose_clients_do_not_share_the_one_port(
    home: Home, cas: Cas
) -> None:
    made = WebProxy(cas)
    found = {"mysql_listen_addr": "0.0.0.0:3036", "mongo_listen_addr": "", "postgres_listen_addr": 5, "other": "h:1"}
    status, ping = made.ping()
    made.answers["/webapi/ping"] = lambda _: (status, ping | {"proxy": ping["proxy"] | {"db": found}})
    async with made.running(server_context(cas)) as web:
        profile = await sign_in(home, web, ca_pin=pin_of(cas))
    assert profile.database_ports == {"mysql_listen_addr": 3036}
    assert home.load("127.0.0.1") == profile


async def test_pin_login_uses_the_bootstrap_name_twice_and_the_password_only_on_the_second(
    home: Home, cas: Cas
) -> None:
    async with WebProxy(cas).running(server_context(cas)) as web:
        await sign_in(home, web, ca_pin=pin_of(cas).upper().replace("SHA256", "sha256"))
    assert web.server_names == ["bootstrap.teleport.cluster.local"] * 2
    assert [each.path for each in web.seen] == ["/webapi/cas", "/webapi/ping", "/webapi/login"]


@pytest.mark.parametrize("context", [web_context, blind_context])
def test_no_login_goes_through_tls_older_than_1_2(context: Any) -> None:
    assert context().minimum_version is ssl.TLSVersion.TLSv1_2


async def test_pin_mismatch_is_refused_before_the_password_is_asked(home: Home, cas: Cas) -> None:
    wrong = "sha256:" + "0" * 64
    async with WebProxy(cas).running(server_context(cas)) as web:
        with pytest.raises(Failure, match="another CA than the pin says") as raised:
            await sign_in(home, web, ca_pin=wrong, password=refuse_password)
    assert pin_of(cas) in str(raised.value)
    assert web.passwords == []
    assert not home.path.exists()


async def test_someone_between_who_repeats_the_right_cas_is_refused_before_the_password(home: Home, cas: Cas) -> None:
    between = WebProxy(cas)
    async with between.running(server_context(Cas())) as web:
        with pytest.raises(Failure, match="does not verify"):
            await sign_in(home, web, ca_pin=pin_of(cas), password=refuse_password)
    assert web.passwords == []
    assert not home.path.exists()


async def test_a_second_ca_beside_the_pinned_one_is_not_believed(home: Home, cas: Cas) -> None:
    other = Cas()
    both = cas.trusted.to_json() | {"host": [other.of[CaKind.HOST].pem, cas.of[CaKind.HOST].pem]}
    between = WebProxy(cas, answers={"/webapi/cas": lambda _: (200, both)})
    async with between.running(server_context(other)) as web:
        with pytest.raises(Failure, match="does not verify"):
            await sign_in(home, web, ca_pin=pin_of(cas), password=refuse_password)


@pytest.mark.parametrize("wrong", ["sha256:123", "md5:" + "0" * 64, "0" * 64])
async def test_malformed_pins_are_named(home: Home, cas: Cas, wrong: str) -> None:
    async with WebProxy(cas).running(server_context(cas)) as web:
        with pytest.raises(Failure, match="is not a CA pin"):
            await sign_in(home, web, ca_pin=wrong, password=refuse_password)
    assert web.seen == []


async def test_unknown_roots_are_refused_and_the_way_out_is_named(home: Home, cas: Cas) -> None:
    async with WebProxy(cas).running(server_context(cas)) as web:
        with pytest.raises(Failure, match="--ca-pin"):
            await sign_in(home, web, password=refuse_password)
    assert web.passwords == []


async def test_system_roots_verify_the_web_certificate_and_its_ca_is_kept(
    home: Home, cas: Cas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web_cas = Cas("web.example")
    roots = tmp_path / "roots.pem"
    roots.write_text(web_cas.of[CaKind.HOST].pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(roots))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    names = ("localhost", "127.0.0.1")
    async with WebProxy(cas).running(server_context(web_cas, names)) as web:
        profile = await sign_in(home, web)
    assert profile.trust == "roots"
    kept = (home.path / "keys" / "127.0.0.1" / "certs.pem").read_text()
    assert cas.of[CaKind.HOST].pem.strip() in kept
    assert web_cas.of[CaKind.HOST].pem.strip() in kept
    assert web_cas.of[CaKind.HOST].pem not in "".join(profile.host_cas)


async def test_insecure_verifies_nothing_and_says_so_in_the_profile(home: Home, cas: Cas) -> None:
    async with WebProxy(cas).running(server_context(Cas("other.example"), ("elsewhere.example",))) as web:
        profile = await sign_in(home, web, insecure=True)
        assert profile.trust == "insecure"
        with pytest.raises(Failure, match="name the cluster's CA with --ca-pin"):
            await sign_in(home, web)  # a CA that nobody verified is not what the next password is trusted to


async def test_renewal_needs_no_pin_keeps_every_path_and_replaces_the_key(home: Home, cas: Cas) -> None:
    async with WebProxy(cas).running(server_context(cas)) as web:
        await sign_in(home, web, ca_pin=pin_of(cas))
        folder = home.path / "keys" / "127.0.0.1"
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        await sign_in(home, web)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.keys() == after.keys()
    assert before["alice"] != after["alice"]
    assert before["certs.pem"] == after["certs.pem"]


async def test_renewal_does_not_trust_a_cluster_with_another_ca(home: Home, cas: Cas) -> None:
    async with WebProxy(cas).running(server_context(cas)) as web:
        await sign_in(home, web, ca_pin=pin_of(cas))
        port = web.address.port
    other = Cas()
    impostor = WebProxy(other)
    async with impostor.running(server_context(other)) as web:
        known = home.load("127.0.0.1")
        assert known is not None
        assert known.proxy.port == port
        from dataclasses import replace

        home.save(replace(known, proxy=web.address))
        with pytest.raises(Failure, match="log in with --ca-pin"):
            await sign_in(home, web, password=refuse_password)
    assert impostor.passwords == []


async def test_a_wrong_password_changes_nothing_and_gives_the_servers_words(home: Home, cas: Cas) -> None:
    async with WebProxy(cas).running(server_context(cas)) as web:
        with pytest.raises(Failure, match="wrong user name or password"):
            await sign_in(home, web, ca_pin=pin_of(cas), password=lambda: "guess")
    assert not home.path.exists()


def other_key(web: WebProxy) -> Any:
    from monoport.auth.keys import generate

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        pair = generate()
        return web.login(body | {"public_key": pair.public, "ssh_public_key": pair.ssh_public})

    return answer


def changed(web: WebProxy, **parts: Any) -> Any:
    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        status, value = web.login(body)
        return status, value | parts

    return answer


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (other_key, "another key"),
        (lambda web: changed(web, cluster="../../etc"), "cannot be the name of a cluster"),
        (lambda web: changed(web, cluster="other.example"), "its CAs are not the cluster's"),
        (lambda web: changed(web, user="mallory"), "mallory"),
        (lambda web: changed(web, certificate="none"), "makes no sense"),
        (lambda web: changed(web, cas={}), "trusted CAs"),
        (lambda _: lambda _body: (200, []), "other than a JSON object"),
        (lambda _: lambda _body: (502, b"<html>"), "status 502"),
        (lambda _: lambda _body: (200, b"x" * 2_000_000), "more than 1048576 bytes"),
    ],
)
async def test_answers_that_make_no_sense_are_refused_and_nothing_is_written(
    home: Home, cas: Cas, answer: Any, says: str
) -> None:
    made = WebProxy(cas)
    made.answers["/webapi/login"] = answer(made)
    async with made.running(server_context(cas)) as web:
        with pytest.raises(Failure, match=says):
            await sign_in(home, web, ca_pin=pin_of(cas))
    assert not home.path.exists()


@pytest.mark.parametrize("user", ["../alice", "a/b", "", "-x", "a\nb", "a" * 200])
async def test_users_that_are_no_file_names_are_refused(home: Home, cas: Cas, user: str) -> None:
    async with WebProxy(cas).running(server_context(cas)) as web:
        with pytest.raises(Failure, match="cannot be the name of a user"):
            await sign_in(home, web, ca_pin=pin_of(cas), user=user, password=refuse_password)
    assert web.seen == []


@pytest.mark.parametrize(
    ("server", "least", "says"),
    [("0.1.0", "0.1.0", []), ("0.1.0", "9.2", ["asks for 9.2"]), ("9.0.1", "0.1.0", ["the cluster is 9.0.1"])],
)
async def test_version_differences_warn(home: Home, cas: Cas, server: str, least: str, says: list[str]) -> None:
    made = WebProxy(cas)
    status, ping = made.ping()
    made.answers["/webapi/ping"] = lambda _: (status, ping | {"server_version": server, "min_client_version": least})
    said: list[str] = []
    async with made.running(server_context(cas)) as web:
        await sign_in(home, web, said, ca_pin=pin_of(cas))
    assert len(said) == len(says)
    assert all(part in line for part, line in zip(says, said, strict=True))


async def test_the_name_to_verify_is_the_public_one_where_the_typed_one_is_unknown(
    home: Home, cas: Cas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monoport.client.login.LOCAL_NAMES", frozenset())
    async with WebProxy(cas).running(server_context(cas)) as web:
        profile = await sign_in(home, web, ca_pin=pin_of(cas))
    assert profile.proxy.host == "127.0.0.1"
    assert profile.server_name == "localhost"


async def test_nobody_listening_is_one_clear_line(home: Home, cas: Cas) -> None:
    async with WebProxy(cas).running(server_context(cas)) as web:
        pass
    with pytest.raises(Failure, match=r"cannot reach the proxy: 127\.0\.0\.1:\d+: [Cc]onnection refused"):
        await sign_in(home, web, ca_pin=pin_of(cas), password=refuse_password)
