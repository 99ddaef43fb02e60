"""What browsers and clients get on the web and bootstrap names, and what they do not."""

import asyncio
import html
import re
import shlex
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated

from monoport import __version__, protocols
from monoport.auth.client import AuthError
from monoport.config import Address, parse
from monoport.net import memory
from monoport.proxy.connection import Connection
from monoport.proxy.web import pages
from monoport.proxy.web.site import Site, site
from monoport.routing.names import BOOTSTRAP
from monoport.routing.outcome import Ask, Kind, Route, Show, Tls, Trust

from .conftest import CAS, PIN, World, make_site

LOGIN = {"user": "alice", "password": "pass", "public_key": "PEM", "ssh_public_key": "ssh", "ttl": 60}
JOIN = {"token": "t", "name": "n1", "roles": ["node"], "public_key": "PEM", "ssh_public_key": "ssh", "names": ["n1"]}


class TestFind:
    @pytest.mark.parametrize("path", ["/webapi/ping", "/webapi/find"])
    async def test_says_how_to_connect(self, world: World, path: str) -> None:
        answer = await world.ask("GET", path)
        assert answer.status == 200
        assert answer.json() == {
            "server_version": __version__,
            "min_client_version": "0.1.0",
            "cluster_name": "example.com",
            "auth": {"type": "local", "second_factor": "off"},
            "proxy": {
                "tls_routing_enabled": True,
                "kube": {"enabled": False, "public_addr": "", "listen_addr": ""},
                "ssh": {
                    "listen_addr": "",
                    "tunnel_listen_addr": "",
                    "web_listen_addr": "0.0.0.0:443",
                    "public_addr": "example.com:443",
                },
                "db": {"postgres_listen_addr": "", "mysql_listen_addr": "", "mongo_listen_addr": ""},
            },
        }

    async def test_head(self, world: World) -> None:
        answer = await world.ask("HEAD", "/webapi/find")
        assert (answer.status, answer.body) == (200, b"")
        assert int(answer.headers["content-length"]) > 100

    def test_comes_from_the_configuration(self) -> None:
        text = (
            "version: v3\nproxy_service: {enabled: yes, public_addr: [a.example:1, b.example:2], listen_addr: ':3023'}"
        )
        loaded = parse(text, "c.yaml")
        made = site(loaded, "main", lambda: (PIN,))
        assert made.describe()["proxy"]["ssh"]["listen_addr"] == "0.0.0.0:3023"
        assert made.describe()["cluster_name"] == "main"
        assert {"a.example", "b.example", "main", "localhost", "127.0.0.1", "[::1]"} == made.hosts
        assert not made.certificate

    @pytest.mark.parametrize(
        ("lines", "at"),
        [
            ("", ""),
            (", mysql_on_silence: 1s", "a.example:1"),
            (", mysql_listen_addr: ':3036'", "0.0.0.0:3036"),
            (", mysql_on_silence: 1s, mysql_listen_addr: ':3036'", "0.0.0.0:3036"),
        ],
    )
    def test_says_where_clients_are_greeted(self, lines: str, at: str) -> None:
        text = f"version: v3\nproxy_service: {{enabled: yes, public_addr: [a.example:1, b.example:2]{lines}}}"
        made = site(parse(text, "c.yaml"), "main", lambda: (PIN,))
        assert made.describe()["proxy"]["db"]["mysql_listen_addr"] == at
        assert made.describe()["proxy"]["db"]["mongo_listen_addr"] == ""


async def test_cas(world: World) -> None:
    assert (await world.ask("GET", "/webapi/cas")).json() == CAS.to_json()


class TestLogin:
    async def test_is_forwarded_with_its_source(self, world: World) -> None:
        answer = await world.ask("POST", "/webapi/login", LOGIN)
        assert answer.status == 200
        body = answer.json()
        assert {key: body[key] for key in ("certificate", "ssh_certificate", "cluster", "user", "logins")} == {
            "certificate": "PEM",
            "ssh_certificate": "SSH",
            "cluster": "example.com",
            "user": "alice",
            "logins": ["root"],
        }
        assert body["cas"] == CAS.to_json()
        assert body["expires"] == "2030-01-01T00:00:00Z"
        assert world.auth.asked == [
            {
                "user": "alice",
                "password": "pass",
                "public_key": "PEM",
                "ssh_public_key": "ssh",
                "ttl": timedelta(seconds=60),
                "source": "192.0.2.7",
                "connection": "c1",
            }
        ]

    @pytest.mark.parametrize(
        ("code", "status"),
        [("wrong_password", 401), ("login_locked", 429), ("locked", 403), ("busy", 503), ("bad_request", 400)],
    )
    async def test_refusals_keep_their_code(self, world: World, code: str, status: int) -> None:
        world.auth.refuses = AuthError(code, "why")
        answer = await world.ask("POST", "/webapi/login", LOGIN)
        assert answer.status == status
        assert answer.json() == {"error": {"code": code, "message": "why"}}

    async def test_an_unreachable_auth_service_is_not_described_to_strangers(self, world: World) -> None:
        world.auth.refuses = AuthError("unavailable", "connect to 10.0.0.5:3025 failed")
        answer = await world.ask("POST", "/webapi/login", LOGIN)
        assert answer.status == 503
        assert b"10.0.0.5" not in answer.body

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"user": 5}, "user: Input should be a valid string"),
            ({"user": ""}, "user: String should have at least 1 character"),
            ({"password": None}, "password: Input should be a valid string"),
            ({"ttl": "60"}, "ttl: Input should be a valid integer"),
            ({"ttl": 0}, "ttl: Input should be greater than or equal to 1"),
            ({"ttl": 1e99}, "ttl: "),
            ({"ttl": True}, "ttl: Input should be a valid integer"),
            ({"source": "127.0.0.1"}, "source: Extra inputs are not permitted"),
            ({"public_key": "x" * 5000}, "public_key: String should have at most 4096 characters"),
            ({"\x1b[31m": 1}, "?[31m: Extra inputs are not permitted"),
        ],
    )
    async def test_strict_values(self, world: World, change: dict[str, Any], message: str) -> None:
        answer = await world.ask("POST", "/webapi/login", LOGIN | change)
        assert answer.status == 400
        assert answer.json()["error"]["code"] == "bad_request"
        assert answer.json()["error"]["message"].startswith(message)
        assert b'pass"' not in answer.body
        assert world.auth.asked == []

    @pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff\xfe", b"[" * 60_000, b'{"user":NaN}', b" "])
    async def test_garbage(self, world: World, body: bytes) -> None:
        answer = await world.ask("POST", "/webapi/login", body)
        assert answer.status == 400
        assert world.auth.asked == []

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
    async def test_a_form_of_another_site_cannot_send_it(self, world: World, kind: str) -> None:
        answer = await world.ask("POST", "/webapi/login", LOGIN, headers=f"Content-Type: {kind}\r\n")
        assert answer.status == 415

    async def test_too_large(self, world: World) -> None:
        answer = await world.ask("POST", "/webapi/login", b"x" * 65_537)
        assert answer.status == 413
        assert answer.json()["error"]["message"] == "the request body is larger than 65536 bytes"

    async def test_one_address_may_try_so_often_and_no_oftener(self, world: World) -> None:
        world.auth.refuses = AuthError("wrong_password", "wrong")
        for _ in range(60):
            assert (await world.ask("POST", "/webapi/login", LOGIN)).status == 401
        answer = await world.ask("POST", "/webapi/login", LOGIN)
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert answer.json()["error"]["message"] == "too many tries from this address; try again in 1 s"
        assert (await world.ask("POST", "/webapi/login", LOGIN, source="192.0.2.8")).status == 401
        world.clock.now += 1
        assert (await world.ask("POST", "/webapi/login", LOGIN)).status == 401
        assert (await world.ask("POST", "/webapi/login", LOGIN)).status == 429


class TestJoin:
    @pytest.mark.parametrize("kind", [Kind.WEB, Kind.BOOTSTRAP])
    async def test_is_forwarded(self, world: World, kind: Kind) -> None:
        host = BOOTSTRAP if kind is Kind.BOOTSTRAP else "example.com"
        answer = await world.ask("POST", "/webapi/join", JOIN, host=host, kind=kind, server_name=host)
        assert answer.json()["host_id"] == "h1"
        assert world.auth.asked[0]["source"] == "192.0.2.7"
        assert world.auth.asked[0]["roles"] == ("node",)

    @pytest.mark.parametrize("roles", [[], ["root"], "node", ["node"] * 9])
    async def test_roles_are_a_closed_set(self, world: World, roles: Any) -> None:
        assert (await world.ask("POST", "/webapi/join", JOIN | {"roles": roles})).status == 400
        assert world.auth.asked == []

    async def test_refused(self, world: World) -> None:
        world.auth.refuses = AuthError("token_expired", "the token has expired")
        answer = await world.ask("POST", "/webapi/join", JOIN)
        assert (answer.status, answer.json()["error"]["code"]) == (403, "token_expired")


class TestHost:
    @pytest.mark.parametrize(
        "host", ["example.com", "EXAMPLE.com.:443", "10.1.2.3", "localhost:3080", "127.0.0.1", "[::1]:1"]
    )
    async def test_ours(self, world: World, host: str) -> None:
        assert (await world.ask("GET", "/webapi/ping", host=host)).status == 200

    @pytest.mark.parametrize(
        "host",
        ["evil.example", "grafana.example.com", BOOTSTRAP, "kube.example.com", "", "a b", "[::", "192.0.2.1", "x:y"],
    )
    async def test_others(self, world: World, host: str) -> None:
        answer = await world.ask("GET", "/", host=host)
        assert answer.status == 421
        assert answer.json()["error"]["code"] == "misdirected"
        assert answer.headers["x-content-type-options"] == "nosniff"

    async def test_a_bare_address_needs_no_name(self, world: World) -> None:
        assert (await world.ask("GET", "/webapi/ping", host="192.0.2.1:443", server_name=None)).status == 200
        assert (await world.ask("GET", "/webapi/ping", host="[2001:db8::1]", server_name=None)).status == 200
        assert (await world.ask("GET", "/webapi/ping", host="rebound.example", server_name=None)).status == 421

    async def test_bootstrap_is_for_itself_alone(self, world: World) -> None:
        where = {"kind": Kind.BOOTSTRAP, "server_name": BOOTSTRAP}
        assert (await world.ask("GET", "/webapi/ping", host="example.com", **where)).status == 421
        for path in ("/webapi/ping", "/webapi/cas"):
            assert (await world.ask("GET", path, host=BOOTSTRAP, **where)).status == 200
        assert (await world.ask("POST", "/webapi/login", LOGIN, host=BOOTSTRAP, **where)).status == 200
        for path in ("/", "/webapi/find"):
            answer = await world.ask("GET", path, host=BOOTSTRAP, headers="Accept: text/html\r\n", **where)
            assert answer.status == 404
            assert answer.json()["error"]["code"] == "not_found"


class TestPage:
    async def test_says_what_this_is_and_the_exact_command(self, world: World) -> None:
        answer = await world.ask("GET", "/")
        assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        text = html.unescape(re.sub(r"<[^>]+>", "", answer.text()))
        command = next(line for line in text.splitlines() if line.startswith("tsh login"))
        assert shlex.split(command) == ["tsh", "login", "--proxy=example.com:443", "--user=$USER", f"--ca-pin={PIN}"]
        assert "identity-aware access proxy" in text

    async def test_loads_nothing_and_runs_nothing(self, world: World) -> None:
        answer = await world.ask("GET", "/")
        text = answer.text()
        assert "<script" not in text
        assert not re.search(r'(?:src|href)="(?!/|data:)', text)
        assert not re.search(r"\bstyle=", text)
        assert "url(" not in text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "'unsafe" not in answer.headers["content-security-policy"]

    async def test_headers_are_on_every_answer(self, world: World) -> None:
        for method, path in (
            ("GET", "/"),
            ("GET", "/webapi/ping"),
            ("GET", "/none"),
            ("PUT", "/"),
            ("POST", "/webapi/login"),
        ):
            headers = (await world.ask(method, path)).headers
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "DENY"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["cache-control"] == "no-store"
            assert "strict-transport-security" not in headers
            assert "server" not in headers

    async def test_hsts_only_with_a_certificate_of_the_owners_choice(self, make_world: Callable[..., World]) -> None:
        answer = await make_world(make_site(certificate=True)).ask("GET", "/")
        assert answer.headers["strict-transport-security"] == "max-age=31536000"

    async def test_not_found_helps_people_and_programs(self, world: World) -> None:
        page = await world.ask("GET", "/gr%3Cb%3Eafana", headers="Accept: text/html,*/*\r\n")
        assert page.status == 404
        assert "There is nothing at <em>/gr&lt;b&gt;afana</em>" in page.text()
        assert "tsh" in page.text()
        plain = await world.ask("GET", "/gr%1b%0aafana")
        assert plain.json()["error"] == {
            "code": "not_found",
            "message": "there is nothing at /gr??afana; see / for what this is",
        }
        api = await world.ask("GET", "/webapi/none", headers="Accept: text/html\r\n")
        assert api.json()["error"]["code"] == "not_found"

    async def test_wrong_method(self, world: World) -> None:
        answer = await world.ask("GET", "/webapi/login")
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        assert answer.json()["error"]["message"] == "/webapi/login does not take GET"

    async def test_no_redirects_by_slash(self, world: World) -> None:
        assert (await world.ask("GET", "/webapi/ping/")).status == 404

    def test_every_value_is_escaped(self) -> None:
        hostile = "<script>alert(1)</script>"
        made = Site(hostile, (Address(hostile, 1),), {}, False, lambda: (hostile,))
        for page in (pages.home(made), pages.not_found(made, hostile)):
            assert "<script" not in page

    async def test_names_every_program_that_tsh_opens(self, world: World) -> None:
        lead = (await world.ask("GET", "/")).text().partition('class="lead"')[2].partition("</p>")[0]
        programs = {protocol.shell.program for protocol in protocols.TABLE.values()}
        assert set(re.findall(r"<code>(.+?)</code>", lead)) == {"ssh"} | programs

    @pytest.mark.parametrize(
        ("keys", "says"),
        [
            ("", "teleport-mysql, spoken by tsh"),
            ("mysql_listen_addr: '[::]:3306'", "teleport-mysql, spoken by tsh; its own clients have port 3306"),
            (
                "mysql_on_silence: 1s",
                "teleport-mysql, or nothing until the client is greeted, and then the server name NAME.db.a.example",
            ),
        ],
    )
    def test_says_of_each_protocol_what_this_port_does(self, keys: str, says: str) -> None:
        text = f"version: v3\nproxy_service:\n  enabled: yes\n  public_addr: a.example:1\n  {keys}\n"
        page = pages.home(site(parse(text, "c.yaml"), "main", lambda: (PIN,)))
        rows = re.findall(r"<dt>(.+?)</dt><dd>(.+?)</dd>", page)
        told = {title: re.sub("<.+?>", "", how) for title, how in rows}
        assert told["MySQL"] == says
        assert told["MongoDB"] == "teleport-mongodb, or the server name NAME.db.a.example"
        assert told["PostgreSQL"] == "teleport-postgres or postgresql, or the server name NAME.db.a.example"

    def test_without_a_pin_yet(self) -> None:
        made = Site("example.com", (Address("example.com", 1),), {}, False, lambda: ())
        assert "--ca-pin=" not in pages.home(made)


async def test_two_requests_of_one_connection(world: World) -> None:
    ping = b"GET /webapi/ping HTTP/1.1\r\nHost: example.com\r\n\r\n"
    async with world.connection() as client:
        await client.write(ping + ping.replace(b"example.com", b"evil.example"))
        client.send_eof()
        received = b""
        while piece := await client.read():
            received += piece
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"421"]


async def test_garbage_on_the_connection(world: World) -> None:
    async with world.connection() as client:
        await client.write(b"\x00\x01\x02\r\n\r\n")
        assert (await client.read()).startswith(b"HTTP/1.1 400 ")


async def test_h2_alone_is_declined_in_its_own_words(world: World) -> None:
    client, server = memory.pair()
    tls = Tls(Show.PUBLIC, Ask.NONE, Trust.NONE, "h2", tls12=True)
    route = Route(Kind.WEB, "web", tls, server_name="example.com", alpn=("h2",))
    connection = Connection("c1", ("192.0.2.7", 5), server, None, route=route)  # type: ignore[arg-type]
    peer = H2Connection()
    peer.initiate_connection()
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(world.web.serve(connection))
        await client.write(peer.data_to_send())
        events = peer.receive_data(await client.read())
        client.close()
        await serving
    ended = next(event for event in events if isinstance(event, ConnectionTerminated))
    assert ended.error_code == ErrorCodes.HTTP_1_1_REQUIRED
