"""The API over real TLS: who gets in, who is thrown out, and what hostile bytes lead to."""

import asyncio
import json
import ssl
from dataclasses import replace
from datetime import timedelta

import pytest

from monoport.audit.events import EventIds, make, to_json
from monoport.auth import authorities, keys
from monoport.auth.authorities import CaKind
from monoport.auth.client import MAX_EVENTS, AuthClient, AuthError, AuthUnavailable, unix
from monoport.auth.issue import Issuer
from monoport.auth.keys import Credentials, auth_alpn, generate
from monoport.auth.storage.memory import MemoryStorage
from monoport.net.tls import connect_tls


async def exhaust(watch):
    """Reads a watch to its end, which is an error."""
    async for _ in watch:
        continue


async def stranger(world, clock):
    """A host certificate of another cluster of the same name."""
    storage = MemoryStorage(clock)
    issuer = Issuer(await authorities.ensure(storage, "example.com", clock), clock)
    pair = generate()
    certificates = issuer.host(
        "h1", roles=("proxy",), principals=("h1",), names=(), public_key=pair.public, ssh_public_key=pair.ssh_public
    )
    return pair, certificates


async def test_the_administrator_gets_in_through_the_socket_that_only_its_user_can_open(world):
    path = world.data_dir / "auth.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    for name in ("admin.crt", "admin.key"):
        assert (world.data_dir / "identity" / name).stat().st_mode & 0o777 == 0o600
    folder = world.data_dir / "identity"
    credentials = Credentials((folder / "admin.crt").read_text(), (folder / "admin.key").read_text(), world.auth.cas)
    async with AuthClient(unix(path), credentials) as client:
        status = await client.status()
    assert (status.cluster, status.roles, status.ca_pins) == ("example.com", ("admin",), world.auth.pins)


async def test_another_clusters_certificate_is_refused_on_both_sides(world, clock):
    pair, theirs = await stranger(world, clock)
    ours = world.auth.cas
    for cas in (ours, theirs.cas):
        async with AuthClient(world.auth.dial(), Credentials(theirs.certificate, pair.private, cas)) as client:
            with pytest.raises(AuthUnavailable):
                await client.status()
    pair, admitted = await world.auth.admit("node", "node-one")
    async with AuthClient(world.auth.dial(), Credentials(admitted.certificate, pair.private, theirs.cas)) as client:
        with pytest.raises(AuthUnavailable):
            await client.status()


@pytest.mark.parametrize("kind", [CaKind.DB, CaKind.DBCLIENT])
async def test_certificates_of_the_database_cas_open_nothing_here(world, kind):
    pair = generate()
    issuer = world.auth._parts.issuer
    if kind is CaKind.DB:
        pem = issuer.database_server(("db",), pair.public, None).certificate
    else:
        pem = issuer.database_client(pair.public, "alice", "orders", world.clock() + timedelta(hours=1)).certificate
    async with AuthClient(world.auth.dial(), Credentials(pem, pair.private, world.auth.cas)) as client:
        with pytest.raises(AuthUnavailable):
            await client.status()


async def test_an_expired_certificate_is_refused(world, clock):
    clock.advance(days=-8)
    pair, admitted = await world.auth.admit("node", "node-one")
    clock.passed = timedelta()
    async with AuthClient(world.auth.dial(), Credentials(admitted.certificate, pair.private, admitted.cas)) as client:
        with pytest.raises(AuthUnavailable, match="expired"):
            await client.status()


async def test_no_certificate_is_refused(world):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata="\n".join(world.auth.cas.host))
    stream = await connect_tls(await world.auth.dial()(), context, server_hostname="example.com")
    await stream.write(b"GET /v1/status HTTP/1.1\r\nHost: auth\r\n\r\n")
    with pytest.raises(ConnectionError, match="certificate required"):
        await stream.read()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
async def test_older_tls_is_refused(world, version):
    pair, admitted = await world.auth.admit("node", "node-one")
    context = Credentials(admitted.certificate, pair.private, admitted.cas).context(auth_alpn(admitted.cluster))
    context.minimum_version = context.maximum_version = version
    with pytest.raises(ConnectionError):
        await connect_tls(await world.auth.dial()(), context, server_hostname="example.com")


async def test_a_proxy_cannot_stand_in_for_the_auth_service(world, clock):
    """A proxy's certificate carries the cluster's name, and the same CA signed it; its role gives it away."""
    from monoport.auth.server import Server
    from monoport.net import memory

    pair, proxy = await world.auth.admit("proxy", "front", ("front.example.org",))
    impostor = Server(world.auth.app, lambda: Credentials(proxy.certificate, pair.private, proxy.cas), clock)

    async def dial():
        ours, theirs = memory.pair()
        world.group.create_task(impostor.serve(theirs))
        return ours

    own, node = await world.auth.admit("node", "node-one")
    async with AuthClient(dial, Credentials(node.certificate, own.private, node.cas)) as client:
        with pytest.raises(AuthUnavailable, match="not an auth service"):
            await client.status()


async def test_a_lock_ends_the_connections_of_whom_it_concerns_and_no_others(world, make_lock):
    await world.add_user()
    alice = await world.user_client()
    node, host_id = await world.host_client("node", "node-one")
    other, _ = await world.host_client("node", "node-two")
    watch, others = node.watch(), other.watch()
    await anext(watch)
    await anext(others)
    assert (await alice.status()).caller == "alice@example.com"
    await world.put(make_lock("stop-node", node=host_id), make_lock("stop-alice", user="alice"))
    with pytest.raises(AuthError) as refused:
        await alice.status()
    assert (refused.value.code, str(refused.value)) == ("access_denied", "alice@example.com is locked")
    await world.auth.tick()
    with pytest.raises(AuthUnavailable):
        await exhaust(watch)
    while getattr(getattr(await anext(others), "resource", None), "name", "") != "stop-alice":
        continue
    await others.aclose()


async def test_a_certificate_that_expires_ends_its_connection(world, clock):
    node, _ = await world.host_client("node", "node-one")
    watch = node.watch()
    await anext(watch)
    before = world.auth._server.callers
    clock.advance(days=8)
    await world.auth.tick()
    with pytest.raises(AuthUnavailable):
        await exhaust(watch)
    assert world.auth._server.callers == before - 1


async def test_the_services_own_certificates_are_renewed_while_it_runs(world, clock):
    before = (world.data_dir / "identity" / "admin.crt").read_text()
    key = (world.data_dir / "identity" / "admin.key").read_text()
    clock.advance(seconds=50)
    world.auth._renew_at = clock()
    await world.auth.tick()
    assert (world.data_dir / "identity" / "admin.crt").read_text() != before
    assert (world.data_dir / "identity" / "admin.key").read_text() == key
    assert (await world.admin_client().status()).cluster == "example.com"


async def raw(world, *pieces):
    """What the service answers to these bytes, after TLS, as the administrator."""
    folder = world.data_dir / "identity"
    credentials = Credentials((folder / "admin.crt").read_text(), (folder / "admin.key").read_text(), world.auth.cas)
    stream = await connect_tls(await world.auth.dial()(), credentials.context(), server_hostname="example.com")
    answer = b""
    async with stream:
        for piece in pieces:
            await stream.write(piece)
        while data := await stream.read():
            answer += data
    return answer


HEAD = b"POST /v1/resources HTTP/1.1\r\nHost: auth\r\nConnection: close\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", b"400"),
        (b"[" * 5000, b"400"),
        (b'"x"', b"400"),
        (b'{"kind":"role"}', b"400"),
        (b"\xff\xfe", b"400"),
        (b'{"kind":"role","version":"v1","metadata":{"name":"../x"},"spec":{}}', b"400"),
        (b'{"kind":"role","version":"v1","metadata":{"name":"x","extra":1},"spec":{}}', b"400"),
    ],
)
async def test_bodies_that_make_no_sense_get_one_clear_error(world, body, status):
    answer = await raw(world, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b'"error"' in answer
    assert b"Traceback" not in answer


async def test_oversized_bodies_and_heads_are_refused_before_they_are_read(world):
    answer = await raw(world, HEAD + b"Content-Length: 1048577\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    answer = await raw(world, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 17)
    assert answer.startswith(b"HTTP/1.1 413")
    answer = await raw(world, b"GET /v1/status HTTP/1.1\r\nHost: auth\r\nX: " + b"y" * 100_000)
    assert answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))


async def test_unknown_paths_and_methods_get_json(world):
    for line in (b"GET /v2/status", b"GET /v1/../etc/passwd", b"DELETE /v1/status", b"GET /"):
        answer = await raw(world, line + b" HTTP/1.1\r\nHost: auth\r\nConnection: close\r\n\r\n")
        assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 405", b"HTTP/1.1 400"))
        assert b'"error"' in answer


async def test_a_fault_of_ours_is_a_500_without_its_traceback(world, monkeypatch):
    async def broken(*_arguments):
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(world.auth.service, "status", broken)
    with pytest.raises(AuthError) as failed:
        await world.admin_client().status()
    assert failed.value.code == "internal"
    assert "secret" not in str(failed.value)


async def test_nobody_listening_is_one_clear_error(tmp_path, world):
    pair, node = await world.auth.admit("node", "node-one")
    async with AuthClient(
        unix(tmp_path / "nothing.sock"), Credentials(node.certificate, pair.private, node.cas)
    ) as client:
        with pytest.raises(AuthUnavailable, match=r"does not answer: .*nothing\.sock"):
            await client.status()


async def test_a_renewed_certificate_is_used_by_the_same_client(world):
    pair, node = await world.auth.admit("node", "node-one")
    current = [Credentials(node.certificate, pair.private, node.cas)]
    async with AuthClient(world.auth.dial(), lambda: current[0]) as client:
        fresh = generate()
        renewed = await client.renew_host(fresh.public, fresh.ssh_public)
        current[0] = Credentials(renewed.certificate, fresh.private, renewed.cas)
        assert (await client.status()).caller == f"{node.host_id}@example.com"
    other = generate()
    with pytest.raises(Exception, match="cannot be used"):
        Credentials(node.certificate, other.private, node.cas).context()


async def test_events_are_kept_once_each_marked_with_their_host_and_paged_newest_first(world):
    agent, host_id = await world.host_client("node", "node-one")
    ids = EventIds(world.clock)
    events = [make(ids, "session.start", {"user": "alice@example.com", "number": n}) for n in range(MAX_EVENTS + 44)]
    await agent.emit(events)
    await agent.emit(events[:10])
    admin, found, position = world.admin_client(), [], None
    while True:
        page = await admin.events_list(100, position, "session.*")
        found += page.events
        position = page.next
        if position is None:
            break
    assert [one.fields["number"] for one in found] == list(range(MAX_EVENTS + 43, -1, -1))
    assert {one.fields["host_id"] for one in found} == {host_id}
    for forged in ("user.login", "lock.delete", "certificate.user"):
        with pytest.raises(AuthError, match="not this host's"):
            await agent.emit([make(ids, forged, {})])
    with pytest.raises(AuthError, match="next"):
        await admin.events_list(10, "nonsense")


async def test_a_batch_of_the_largest_events_fits(world):
    agent, _ = await world.host_client("db", "agent")
    ids = EventIds(world.clock)
    await agent.emit([make(ids, "db.query", {"a": "\x00" * 10_000}) for _ in range(40)])
    assert len((await world.admin_client().events_list(100, None, "db.query")).events) == 40


async def test_an_agent_cannot_make_the_audit_log_unreadable_or_write_into_its_future(world):
    node, _ = await world.host_client("node", "node-one")
    ids = EventIds(world.clock)
    event = make(ids, "session.start", {"user": "alice@example.com"})
    with pytest.raises(AuthError, match="limit"):
        await node.emit([replace(event, fields={"user": "a" * 900_000})])
    for number in (b"NaN", b"-Infinity", b"1e400"):
        for kind in (b"session.start", b"session.end"):
            payload = event.payload.replace(b"session.start", kind).replace(b'"alice@example.com"', number)
            with pytest.raises(AuthError, match="not JSON's"):
                await node.emit_payloads([payload])
    with pytest.raises(AuthError, match="time"):
        await node.emit_payloads([json.dumps(to_json(event) | {"time": "0001-01-01T00:00:00+14:00"}).encode()])
    await node.emit([replace(event, time=world.clock() + timedelta(days=3650))])
    [kept] = (await world.admin_client().events_list(10, None, "session.start")).events
    assert kept.time <= world.clock()


async def test_a_flood_of_one_callers_connections_is_bounded(world, monkeypatch):
    monkeypatch.setattr("monoport.auth.server.PER_CALLER", 2)
    node, _ = await world.host_client("node", "node-one")
    watches = [node.watch(), node.watch()]
    for watch in watches:
        await anext(watch)
    with pytest.raises(AuthError):
        await anext(node.watch())
    other, _ = await world.host_client("node", "node-two")
    assert await other.status()
    for watch in watches:
        await watch.aclose()


def test_the_alpn_of_a_cluster_is_plain_unless_it_cannot_be():
    assert auth_alpn("example.com") == "teleport-auth@example.com"
    assert auth_alpn("bücher") == "teleport-auth@62c3bc63686572.teleport.cluster.local"


def test_private_files_are_replaced_whole(tmp_path):
    path = tmp_path / "new" / "key"
    keys.write_private(path, "one")
    keys.write_private(path, "two")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("two", 0o600)
    assert [one.name for one in path.parent.iterdir()] == ["key"]
    with pytest.raises(UnicodeEncodeError):
        keys.write_private(path, "ü")
    assert (path.read_text(), len(list(path.parent.iterdir()))) == ("two", 1)


async def test_closing_the_service_ends_its_callers(tmp_path, clock):
    from monoport.auth.local import LocalAuth

    from .conftest import fast_hasher

    (tmp_path / "d").mkdir()
    local = await LocalAuth.open(tmp_path / "d", "example.com", now=clock, hasher=fast_hasher())
    async with local, asyncio.TaskGroup() as group:
        running = group.create_task(local.run())
        await local.ready.wait()
        pair, node = await local.admit("node", "node-one")
        async with AuthClient(local.dial(), Credentials(node.certificate, pair.private, node.cas)) as client:
            await client.emit([make(EventIds(clock), "session.start", {})])
            for name in ("auth.db", "events.db", "events.db-wal"):
                assert (tmp_path / "d" / name).stat().st_mode & 0o777 == 0o600
            watch = client.watch()
            await anext(watch)
            running.cancel()
            with pytest.raises(AuthUnavailable):
                await exhaust(watch)
            with pytest.raises(AuthUnavailable, match="not running"):
                await client.status()
    assert not (tmp_path / "d" / "auth.sock").exists()


async def test_the_same_client_goes_on_after_a_restart_without_repeating_anything(tmp_path, clock):
    from monoport.auth.local import LocalAuth

    from .conftest import fast_hasher

    (tmp_path / "d").mkdir()
    client = None
    for start in range(3):
        local = await LocalAuth.open(tmp_path / "d", "example.com", now=clock, hasher=fast_hasher())
        async with local, asyncio.TaskGroup() as group:
            running = group.create_task(local.run())
            await local.ready.wait()
            if client is None:
                folder = tmp_path / "d" / "identity"
                certificate, key = (folder / "admin.crt").read_text(), (folder / "admin.key").read_text()
                client = AuthClient(unix(tmp_path / "d" / "auth.sock"), Credentials(certificate, key, local.cas))
            await client.tokens_add(["node"])
            assert len(await client.tokens_list()) == start + 1
            running.cancel()
    await client.close()


async def test_a_fault_in_one_connection_or_one_tick_does_not_end_the_service(world, monkeypatch):
    async def broken(*_arguments, **_values):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("monoport.auth.server.serve_http", broken)
    pair, node = await world.auth.admit("node", "node-one")
    async with AuthClient(world.auth.dial(), Credentials(node.certificate, pair.private, node.cas)) as client:
        with pytest.raises(AuthUnavailable):
            await client.status()
        monkeypatch.undo()
        ticked = asyncio.Event()

        async def tick():
            ticked.set()
            raise ZeroDivisionError("ours")

        monkeypatch.setattr(world.auth, "tick", tick)
        monkeypatch.setattr("monoport.auth.local.TICK", 0.001)
        await ticked.wait()
        assert (await client.status()).cluster == "example.com"
