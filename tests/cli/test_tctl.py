"""tctl against a real auth service in this process, each command in a thread of its own as a process would be."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from ruamel.yaml import YAML
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from monoport import config, protocols
from monoport.access.identity import from_ssh, from_x509
from monoport.access.resources import parse_document
from monoport.auth import calls
from monoport.auth.local import LocalAuth
from monoport.cli import run as outer
from monoport.cli.tctl import tctl
from monoport.net.http import serve_http
from monoport.net.sockets import SocketStream

PASSWORD = "correct horse battery"


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    path = tmp_path / "monoport.yaml"
    (tmp_path / "data").mkdir(mode=0o700)
    path.write_text(
        f"version: v3\nteleport: {{data_dir: {tmp_path}/data}}\n"
        "auth_service: {enabled: yes, cluster_name: example.com}\n"
        "proxy_service: {enabled: yes, web_listen_addr: '127.0.0.1:0', public_addr: ['front.example.org:3080']}\n"
    )
    return path


class Tctl:
    """Runs tctl to its end, in a thread, while the service runs here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runner = CliRunner()

    async def __call__(self, *words: str | Path, stdin: str | None = None, code: int = 0) -> str:
        def call() -> tuple[int, str, str]:
            with self.runner.isolation(input=stdin) as (out, err, _):
                status = outer.execute(tctl, ["-c", str(self.path), *map(str, words)])
                sys.stdout.flush()
                return status, out.getvalue().decode(), err.getvalue().decode()

        status, out, err = await asyncio.to_thread(call)
        assert status == code, (words, status, out, err)
        assert "Traceback" not in out + err
        return out if code == 0 else err

    async def json(self, *words: str | Path):
        return json.loads(await self(*words, "--format=json"))

    async def yaml(self, *words: str | Path):
        return YAML(typ="safe").load(await self(*words, "--format=yaml"))


@pytest.fixture
async def service(configuration):
    """A cluster beside the configuration; yields the service."""
    local = await LocalAuth.open(configuration.parent / "data", "example.com")
    async with local, asyncio.TaskGroup() as group:
        running = group.create_task(local.run())
        await local.ready.wait()
        yield local
        running.cancel()


@pytest.fixture
def call(configuration, service):
    return Tctl(configuration)


async def test_status_shows_the_cluster_and_its_pin(call, service):
    text = await call("status")
    assert text.startswith("Cluster   example.com\n")
    assert service.pins[0] in text
    assert (await call.json("status"))["ca_pins"] == list(service.pins)


async def test_users_come_and_go(call):
    out = await call(
        *(
            "users",
            "add",
            "alice",
            "--roles=access,auditor",
            "--logins=root, alice",
            "--db-users=app",
            "--db-names=shop",
        ),
        "--password-stdin",
        stdin=PASSWORD + "\n",
    )
    assert out == "user alice added, roles: access,auditor\n"
    assert await call.json("users", "ls") == [
        {
            "name": "alice",
            "roles": ["access", "auditor"],
            "traits": {"logins": ["root", "alice"], "db_users": ["app"], "db_names": ["shop"]},
        }
    ]
    assert "alice" in await call("users", "ls")
    await call("users", "reset", "alice", "--password-stdin", stdin="another password\n")
    assert "exists" in await call("users", "add", "alice", "--password-stdin", stdin=PASSWORD, code=1)
    await call("users", "rm", "alice")
    assert await call.yaml("users", "ls") == []
    assert await call("users", "rm", "alice", code=1) == 'tctl: no user "alice"\n'


async def test_a_password_is_asked_for_at_a_terminal_only(call, monkeypatch):
    for words in (("users", "add", "bob"), ("users", "reset", "bob")):
        assert "--password-stdin" in await call(*words, code=1)
    assert "standard input is empty" in await call("users", "add", "bob", "--password-stdin", code=1)
    assert "at least 8" in await call("users", "add", "bob", "--password-stdin", stdin="short\n", code=1)
    assert "no role nix" in await call("users", "add", "bob", "--roles=nix", "--password-stdin", stdin=PASSWORD, code=1)
    asked = iter([PASSWORD, "different", PASSWORD, PASSWORD])
    monkeypatch.setattr("monoport.cli.newpassword._at_terminal", lambda: True)
    monkeypatch.setattr("getpass.getpass", lambda _prompt: next(asked))
    assert "differ" in await call("users", "add", "bob", code=1)
    await call("users", "add", "bob")


async def test_nobody_types_a_password_for_a_service_that_cannot_be_asked(configuration, monkeypatch):
    monkeypatch.setattr("monoport.cli.newpassword._at_terminal", lambda: True)
    monkeypatch.setattr("getpass.getpass", lambda _prompt: pytest.fail("asked for a password"))
    assert "not running" in await Tctl(configuration)("users", "add", "bob", code=1)
    assert "cannot read" in await Tctl(configuration.with_name("none"))("users", "reset", "bob", code=1)


async def test_a_token_comes_with_a_configuration_that_the_daemon_reads(call, service, tmp_path):
    text = await call("tokens", "add", "--type=node,db", "--ttl=1h")
    pasted = text[text.index("version: v3") :]
    read = config.parse(pasted, str(tmp_path / "agent.yaml"))
    assert str(read.teleport.proxy_server) == "front.example.org:3080"
    assert read.teleport.ca_pin == service.pins
    assert read.teleport.join_params.token_name == text.split()[1]
    assert read.ssh_service.enabled
    assert [one.protocol for one in read.db_service.databases] == [next(iter(protocols.TABLE))]
    for protocol in protocols.TABLE.values():
        assert f"{protocol.name} at localhost:{protocol.default_port}" in text or f"protocol: {protocol.name}" in text


async def test_a_token_for_names_says_so_wherever_it_is_shown(call, tmp_path):
    text = await call("tokens", "add", "--type=node,db", "--db=orders,prod", "--node=Web")
    assert "For db   orders,prod" in text
    assert "For node web" in text
    read = config.parse(text[text.index("version: v3") :], str(tmp_path / "agent.yaml"))
    assert [one.name for one in read.db_service.databases] == ["orders", "prod"]
    made = await call.json("tokens", "add", "--type=db", "--db=orders")
    assert (set(made), made["databases"]) == ({"token", "ca_pin", "types", "expires", "databases"}, ["orders"])
    listed = await call.json("tokens", "ls")
    assert [(one["databases"], one["nodes"]) for one in listed] == [(["orders", "prod"], ["web"]), (["orders"], [])]
    assert "must be of the type db" in await call("tokens", "add", "--type=node", "--db=orders", code=1)


@pytest.mark.parametrize("value", ["12345678", "a: b # {c}", "yes-it-is", '"quoted"\\', "0x12345678", "1e10000000"])
async def test_any_value_of_a_token_survives_the_pasting(call, tmp_path, value):
    text = await call("tokens", "add", "--type=node", f"--value={value}")
    read = config.parse(text[text.index("version: v3") :], str(tmp_path / "agent.yaml"))
    assert read.teleport.join_params.token_name == value


async def test_tokens_as_json_have_exactly_what_scripts_need(call, service):
    made = await call.json("tokens", "add", "--type=node,db,app,kube,trusted_cluster,proxy,auth", "--ttl=30m")
    assert set(made) == {"token", "ca_pin", "types", "expires"}
    assert made["ca_pin"] == service.pins[0]
    assert made["types"] == ["node", "db", "app", "kube", "trusted_cluster", "proxy", "auth"]
    (listed,) = await call.json("tokens", "ls")
    assert made["token"] not in json.dumps(listed)
    await call("tokens", "rm", made["token"])
    assert await call.json("tokens", "ls") == []
    assert "expected some of node" in await call("tokens", "add", "--type=nodes", code=1)
    assert "expected a duration" in await call("tokens", "add", "--type=node", "--ttl=soon", code=1)


ROLE = """
kind: role
version: v1
metadata: {name: dev}
spec:
  allow: {logins: [root], node_labels: {env: dev}}
---
kind: lock
version: v1
metadata: {name: stop}
spec: {target: {user: mallory}}
"""


async def test_resources_are_created_got_replaced_and_removed(call, tmp_path):
    path = tmp_path / "resources.yaml"
    path.write_text(ROLE)
    assert await call("create", path) == "role/dev created\nlock/stop created\n"
    assert "--force" in await call("create", path, code=1)
    await call("create", "--force", path)
    got = await call("get", "role/dev")
    path.write_text(got)
    await call("create", "-f", path)
    (role,) = await call.json("get", "roles/dev")
    assert role["spec"]["allow"]["logins"] == ["root"]
    assert {one["metadata"]["name"] for one in await call.json("get", "roles")} == {
        "access",
        "auditor",
        "dev",
        "editor",
    }
    await call("rm", "role/dev")
    assert await call("get", "role/dev", code=1) == "tctl: no role/dev\n"
    await call("create", "-", stdin=ROLE.split("---", maxsplit=1)[0])
    await call("get", "role/dev")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("kind: [", "resources.yaml:1:8: "),
        ("", "holds no resource"),
        ("kind: rolle", "kind: expected one of"),
        ("kind: role\nversion: v1\nmetadata: {name: x}\nspec: {alow: {}}", "role/x: spec.alow: "),
        ("kind: node\nversion: v1\nmetadata: {name: x}\nspec: {hostname: y, host_id: x}", "registered by its agent"),
        ("- 1\n- 2", "expected a document"),
        ("a: &a [*a]", "expected"),
        ("x" * 1_100_000, "larger than"),
    ],
)
async def test_a_bad_file_is_one_line_that_says_where(call, tmp_path, text, error):
    path = tmp_path / "resources.yaml"
    path.write_text(text)
    line = await call("create", path, code=1)
    assert error in line
    assert line.count("\n") == 1


async def test_what_does_not_exist_or_makes_no_sense_is_one_line(call):
    assert "no resources of kind bogus" in await call("get", "bogus", code=1)
    assert "expected KIND/NAME" in await call("rm", "role", code=1)
    assert "exactly one" in await call("lock", code=1)
    assert "exactly one" in await call("lock", "--user=a", "--node=b", code=1)
    assert "no such file" in await call("create", "/nowhere.yaml", code=1)
    assert "takes --host" in await call("auth", "sign", "--format=db", "--out=x", code=1)
    assert "expected --user" in await call("auth", "sign", "--out=x", code=1)


async def test_locks_are_set_listed_and_lifted(call):
    out = await call("lock", "--user=mallory", "--ttl=1h", "--message=gone bad")
    assert out.endswith("lift it with: tctl rm lock/user-mallory\n")
    await call("lock", "--user=mallory")
    (lock,) = await call.json("get", "lock")
    assert lock["spec"] == {"target": {"user": "mallory"}}
    await call("rm", "lock/user-mallory")
    assert await call.json("get", "locks") == []


async def test_certificates_are_signed_for_keys_made_here(call, service, tmp_path):
    await call("users", "add", "alice", "--logins=root", "--password-stdin", stdin=PASSWORD)
    folder = tmp_path / "alice"
    await call("auth", "sign", "--user=alice", f"--out={folder}", "--ttl=2h")
    key = load_pem_private_key((folder / "alice").read_bytes(), None)
    certificate = x509.load_pem_x509_certificate((folder / "alice-x509.pem").read_bytes())
    assert certificate.public_key() == key.public_key()
    assert from_x509(certificate, service.cas).principals == ("root",)
    assert from_ssh((folder / "alice-cert.pub").read_text(), service.cas).name == "alice"
    assert (folder / "alice").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    prefix = tmp_path / "pg"
    out = await call("auth", "sign", "--format=db", "--host=db.internal,10.0.0.1", f"--out={prefix}", "--ttl=24h")
    for protocol in protocols.TABLE.values():
        assert f"\n{protocol.title}\n" in out
    assert f"ssl_ca_file = '{prefix}.cas'" in out
    assert f"ssl-ca = {prefix}.cas" in out
    assert "require subject '/O=example.com/OU=DATABASE/CN=NAME'" in out
    assert f"CAFile: {prefix}.cas" in out
    assert f"cat {prefix}.crt {prefix}.key > {prefix}.pem" in out
    assert '{createUser: "CN=NAME", roles: [...]}' in out
    server = x509.load_pem_x509_certificate((tmp_path / "pg.crt").read_bytes())
    server.verify_directly_issued_by(x509.load_pem_x509_certificate(service.cas.db[0].encode()))
    assert (tmp_path / "pg.cas").read_text().strip() == service.cas.dbclient[0].strip()
    assert (tmp_path / "pg.key").stat().st_mode & 0o777 == 0o600
    assert 'no user "nobody"' in await call("auth", "sign", "--user=nobody", f"--out={folder}", code=1)


async def test_a_database_is_removed_and_allowed_again(call, service):
    joined = (await service.admit("db", "dbhost"))[1]
    host = from_x509(x509.load_pem_x509_certificate(joined.certificate.encode()), joined.cas)
    document = {"kind": "db", "metadata": {"name": "prod"}, "spec": {"protocol": "postgres", "host_id": host.name}}
    await service.service.heartbeat(host, parse_document(document), first=True)
    assert "prod" in await call("db", "ls")
    said = await call("rm", "db/prod")
    assert said == "db/prod removed\n"
    assert "prod" not in await call("db", "ls")
    assert await call("db", "allow", "prod") == "db/prod is allowed: agents that have it register it within 15 s\n"
    assert await call("db", "allow", "prod", code=1) == 'tctl: no database "prod" was removed\n'


async def test_every_ca_can_be_exported(call, service):
    cas = service.cas
    assert (await call("auth", "export")).strip() == cas.ssh_user[0].strip()
    assert (await call("auth", "export", "--type=host")).strip() == cas.ssh_host[0].strip()
    known = await call("auth", "export", "--type=known_hosts")
    assert known.startswith("@cert-authority *.example.com,example.com ")
    for kind, pem in (("tls-user", cas.user), ("tls-host", cas.host), ("db", cas.db), ("db-client", cas.dbclient)):
        assert (await call("auth", "export", f"--type={kind}")).strip() == pem[0].strip()


async def test_nodes_databases_and_events_are_listed(call, service):
    assert await call.json("nodes", "ls") == await call.json("db", "ls") == []
    assert (await call("nodes", "ls")).startswith("Node")
    assert (await call("db", "ls")).startswith("Database")
    await call("users", "add", "alice", "--password-stdin", stdin=PASSWORD)
    await call("users", "rm", "alice")
    events = await call.json("events", "ls", "--limit=1")
    assert [one["type"] for one in events] == ["user.delete"]
    said = "expected a type such as db.query, or a family such as db.*"
    for odd in ("user*", "*", "db.*.more"):
        assert said in await call("events", "ls", f"--type={odd}", code=1)
    events = await call.json("events", "ls", "--type=user.*")
    assert [one["type"] for one in events] == ["user.delete", "user.create"]
    assert events[0]["name"] == "alice"
    text = await call("events", "ls")
    assert "user.create" in text
    assert "= " not in text


async def test_what_happened_comes_before_the_ids_in_a_listing_of_events(call, service):
    facts = {"connection": "c1", "source": "192.0.2.1:5", "node": "h-1", "hostname": "web", "login": "root"}
    await service.service.record("session.start", user="alice@example.com", **facts)
    text = await call("events", "ls", "--type=session.start")
    assert text.rstrip().endswith("hostname=web login=root connection=c1 source=192.0.2.1:5 node=h-1")


async def test_without_the_service_every_command_says_how_to_start_it(configuration):
    call = Tctl(configuration)
    for words in (("status",), ("users", "ls"), ("events", "ls"), ("tokens", "add", "--type=node"), ("route", "ls")):
        line = await call(*words, code=1)
        assert f"monoport start -c {configuration}" in line
        assert line.count("\n") == 1
    configuration.write_text(
        "version: v3\nteleport: {data_dir: /x, proxy_server: 'a:1'}\nssh_service: {enabled: yes}\n"
    )
    assert "enables no auth service" in await call("status", code=1)
    configuration.write_text("version: v3\nbogus: 1\n")
    assert f"{configuration}:2:1: " in await call("status", code=1)


async def test_a_service_that_was_killed_is_not_running(configuration, service):
    await Tctl(configuration)("status")
    path = configuration.parent / "data" / "auth.sock"
    path.rename(path.with_name("moved"))
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    assert "auth service is not running" in await Tctl(configuration)("status", code=1)


async def test_a_service_that_hangs_is_not_said_to_be_stopped(configuration, service, monkeypatch):
    await Tctl(configuration)("status")
    monkeypatch.setattr(calls, "DIAL_SECONDS", 0.2)
    path = configuration.parent / "data" / "auth.sock"
    path.rename(path.with_name("moved"))
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        said = await Tctl(configuration)("status", code=1)
    assert said == "tctl: the auth service of example.com does not answer: no connection within 0.2 s\n"


CONNECTION = {
    **{
        "id": "a1",
        "source": "192.0.2.1:5",
        "user": "alice@example.com",
        "route": "ssh",
        "sni": "x\x1b[2J",
        "alpn": "h2",
    },
    **{"state": "open", "age_s": 61.5, "bytes_in": 2048, "bytes_out": 10, "reason": ""},
}


WELL = {"problem": "", "on_failure": "refuse", "waiting": 0, "lost": 0}


@pytest.fixture
async def daemon(configuration):
    """A daemon.sock that answers as the daemon does, and the questions it got."""
    asked = []

    async def conns(_request: Request) -> JSONResponse:
        return JSONResponse([CONNECTION])

    async def routes(_request: Request) -> JSONResponse:
        return JSONResponse([{"rule": "ssh", "when": "ALPN x", "goes_to": "SSH proxy", "tls": "no certificate asked"}])

    async def explain(request: Request) -> JSONResponse:
        asked.append(await request.json())
        if asked[-1]["sni"] == "bad":
            return JSONResponse({"error": {"code": "failed", "message": "no such name"}}, 400)
        answered = {"outcome": "ssh", "steps": [{"rule": "r", "verdict": "won", "why": "because"}]}
        if "aim" in asked[-1]:
            locks = {"rule": "locks", "verdict": "no match", "why": "none"}
            decision = {"rule": "decision", "verdict": "denied", "why": "no role allows it"}
            answered["access"] = [locks, decision]
        return JSONResponse(answered)

    async def health(_request: Request) -> JSONResponse:
        return JSONResponse({"audit": asked.pop() if asked else {"auth": WELL}})

    paths = [
        Route("/health", health),
        Route("/conns", conns),
        Route("/routes", routes),
        Route("/explain", explain, methods=["POST"]),
    ]
    app = Starlette(routes=paths)

    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(configuration.parent / "data" / "daemon.sock"))
    listening.listen()
    listening.setblocking(False)
    async with asyncio.TaskGroup() as group:

        async def accept():
            while True:
                accepted, _ = await asyncio.get_running_loop().sock_accept(listening)
                group.create_task(serve_http(SocketStream(accepted), app, state={}))

        accepting = group.create_task(accept())
        yield asked
        accepting.cancel()
    listening.close()


async def test_the_daemon_tells_of_connections_and_routes(configuration, service, daemon, tmp_path):
    call = Tctl(configuration)
    assert await call.json("conns", "ls") == [CONNECTION]
    text = await call("conns", "ls")
    assert "x\\x1b[2J" in text
    assert "1m01s" in text
    assert "2.0 KiB" in text
    assert (await call.json("route", "ls"))[0]["rule"] == "ssh"
    certificate = tmp_path / "c.pem"
    certificate.write_text("PEM")
    text = await call("route", "explain", "--sni=a.b", "--alpn=h2,http/1.1", f"--cert={certificate}")
    assert text.startswith("ssh\n")
    assert "because" in text
    assert daemon == [{"sni": "a.b", "alpn": ["h2", "http/1.1"], "certificate": "PEM"}]
    assert await call("route", "explain", "--sni=bad", code=1) == "tctl: no such name\n"
    assert "not both" in await call("route", "explain", "--user=a", f"--cert={certificate}", code=1)


async def test_status_says_whether_events_are_kept(call, daemon):
    assert "\nAudit     every event is kept\n" in await call("status")
    full = {**WELL, "problem": "cannot write to the spool /s: No space left on device"}
    daemon.append({"auth": WELL, "node": full})
    says = "\nAudit     node: cannot write to the spool /s: No space left on device: new sessions are refused\n"
    assert says in await call("status")
    daemon.append({"db": {**full, "on_failure": "continue", "waiting": 3, "lost": 2}})
    text = await call("status")
    assert "No space left on device: sessions go on UNRECORDED\n" in text
    assert "\nAudit     db: 3 events wait in memory, 2 are lost\n" in text
    assert (await call.json("status"))["audit"] == {"auth": WELL}


async def test_who_may_reach_what_is_asked_of_the_daemon(configuration, service, daemon, tmp_path):
    call = Tctl(configuration)
    await call("users", "add", "alice", "--logins=root", "--password-stdin", stdin=PASSWORD)
    (document,) = await call.json("get", "user/alice")
    text = await call("route", "explain", "--user=alice", "--node=web", "--login=root")
    assert text.split("\n\n")[1:] == [
        "Rule  Verdict  Why\nr     won      because",
        "denied: no role allows it",
        "Rule   Verdict   Why\nlocks  no match  none\n",
    ]
    await call("route", "explain", "--user=alice", "--db=orders", "--db-user=u", "--db-name=d", "--format=json")
    await call("route", "explain", "--user=alice", "--db=stock", "--db-user=u", "--format=json")
    assert [question["aim"] for question in daemon] == [
        {"node": "web", "login": "root"},
        {"db": "orders", "db_user": "u", "db_name": "d"},
        {"db": "stock", "db_user": "u"},
    ]
    assert [question["user"] for question in daemon] == [document] * 3
    assert await call("route", "explain", "--user=nix", code=1) == "tctl: no user/nix\n"
    for words, said in (
        (("--user=alice", "--node=a", "--db=b"), "expected one of --node"),
        (("--user=alice", "--login=a"), "expected one of --node"),
        (("--user=alice", "--db=a", "--db-user=u", "--db-name=d", "--login=x"), "not with --login"),
        (("--user=alice", "--node=a", "--db-user=u"), "--node goes with --login"),
        (("--node=a",), "whose access?"),
    ):
        assert said in await call("route", "explain", *words, code=1)
    assert len(daemon) == 3


async def test_an_auth_service_alone_explains_access(configuration, service, tmp_path):
    text = configuration.read_text().replace("proxy_service: {enabled: yes", "proxy_service: {enabled: no")
    configuration.write_text(text)
    call = Tctl(configuration)
    await call("users", "add", "alice", "--logins=alice", "--db-users=app", "--password-stdin", stdin=PASSWORD)
    for role, kind, spec in (
        ("node", "node", {"hostname": "web"}),
        ("db", "db", {"protocol": "mysql"}),
    ):
        _, granted = await service.admit(role, "web")
        host = from_x509(x509.load_pem_x509_certificate(granted.certificate.encode()), granted.cas)
        name = host.name if role == "node" else "stock"
        document = {"kind": kind, "version": "v1", "metadata": {"name": name}, "spec": {**spec, "host_id": host.name}}
        await service.service.heartbeat(host, parse_document(document))
    said = await call("route", "explain", "--user=alice", "--node=web", "--login=root")
    assert said.startswith("denied: certificate: login root is not among its principals\n\nRule ")
    assert "role access: allow.logins" in said
    said = await call("route", "explain", "--user=alice", "--db=stock", "--db-user=app")
    assert said.startswith("allowed: role access: allow.db_labels has *")
    await call("lock", "--user=alice")
    answer = await call.json("route", "explain", "--user=alice", "--node=web", "--login=alice")
    assert (answer["access"][0]["rule"], answer["access"][-1]["verdict"]) == ("lock user-alice", "denied")
    await call("auth", "sign", "--user=alice", f"--out={tmp_path}/signed")
    certificate = next((tmp_path / "signed").glob("*x509.pem"))
    said = await call("route", "explain", f"--cert={certificate}", "--node=web", "--login=alice")
    assert said.startswith("denied: lock user-alice")
    for words, wrong in (
        (("--node=nix",), 'no node "nix" is there'),
        (("--node=web", "--sni=a.b"), "access alone"),
        ((), "the daemon is not running"),
    ):
        assert wrong in await call("route", "explain", "--user=alice", *words, code=1)


async def test_users_are_changed(call):
    await call("users", "add", "alice", "--logins=root", "--traits=team=red,blue", "--password-stdin", stdin=PASSWORD)
    out = await call("users", "update", "alice", "--set-logins=root,alice", "--set-traits", "site=eu")
    assert out == "user alice changed; it counts from the next tsh login on\n"
    out = await call(
        "users", "update", "alice", "--set-roles=access,auditor", "--set-traits=team=", "--set-db-users=app"
    )
    assert out == "user alice changed; sessions end now, and the user has to sign in again\n"
    traits = {"logins": ["root", "alice"], "site": ["eu"], "db_users": ["app"]}
    assert await call.json("users", "ls") == [{"name": "alice", "roles": ["access", "auditor"], "traits": traits}]
    assert "db_users=app logins=root,alice site=eu" in await call("users", "ls")
    assert (await call.json("get", "user/alice"))[0]["spec"]["traits"] == traits
    for words, said in (
        ((), "nothing to change: expected --set-roles"),
        (("--set-roles=",), "--set-roles names no role"),
        (("--set-roles=nix",), "no role nix"),
        (("--set-traits=team",), "'team': expected KEY=V1,V2"),
        (("--set-traits==a",), "expected KEY=V1,V2"),
        (("--set-traits=a=1", "--set-traits=a=2"), "the trait a is set twice"),
        (("--set-logins=a", "--set-traits=logins=b"), "the trait logins is set twice"),
        (("--set-db-users=*",), "'*' is no value"),
    ):
        line = await call("users", "update", "alice", *words, code=1)
        assert said in line, words
    assert "no user" in await call("users", "update", "bob", "--set-roles=access", code=1)
