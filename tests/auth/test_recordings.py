"""Recordings at the auth service: whose they are, in parts, verified, never overwritten, and who may see them."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from pathlib import Path

import pytest

from monoport.access.identity import Destination
from monoport.agents.node.upload import PART, upload
from monoport.audit.asciicast import Event, Header, encode_event, encode_header
from monoport.audit.events import EventIds, make
from monoport.audit.log import MemoryLog
from monoport.audit.recorder import Limits, Recordings
from monoport.auth import messages, recordings
from monoport.auth.calls import AuthError, AuthUnavailable
from monoport.auth.local import LocalAuth
from monoport.auth.recordings import Filter
from monoport.auth.refusals import Exists, Forbidden, Invalid, NotFound, SessionUnknown, TooBusy

from .conftest import CLUSTER, World, fast_hasher


def cast(session: str, text: str = "hello", count: int = 3) -> bytes:
    head = encode_header(Header(80, 24, 1_900_000_000, {"id": session}))
    return head + b"".join(encode_event(Event(float(n), "o", text)) for n in range(count))


def offer(data: bytes, **changes) -> messages.RecordingOffer:
    facts = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "seconds": 2.0}
    return messages.RecordingOffer(**(facts | changes))


async def announce(world: World, node: str, session: str, user: str = f"alice@{CLUSTER}") -> None:
    """The node has put the session's beginning into the audit log."""
    facts = {"session": session, "user": user, "login": "root", "hostname": "web", "connection": "c1"}
    event = make(EventIds(world.clock), "session.start", facts)
    await world.auth.service.emit(world.host("node", node), [event])


async def brought(world: World, node: str, data: bytes, session: str) -> messages.RecordingState:
    caller, service = world.host("node", node), world.auth.recordings
    state = await service.offer(caller, session, offer(data))
    if state.kept:
        return state
    await service.append(caller, session, state.received, data[state.received :])
    return await service.complete(caller, session, offer(data))


async def kept(world: World, user: str = f"alice@{CLUSTER}", node: str = "n1", text: str = "hello") -> str:
    session = str(uuid.uuid4())
    await announce(world, node, session, user)
    assert (await brought(world, node, cast(session, text), session)).kept
    return session


async def events(world: World, event_type: str) -> list[dict]:
    page = await world.auth.administration.events(world.admin, 100, None, event_type)
    return [dict(event.fields) for event in page.events]


# --- taking


async def test_a_recording_is_kept_with_what_the_audit_log_says_of_its_session(world: World) -> None:
    session = await kept(world)
    found = await world.auth.recordings.get(world.admin, session)
    assert (found.user, found.login, found.node, found.host_id) == (f"alice@{CLUSTER}", "root", "web", "n1")
    assert (found.size, found.seconds) == (len(cast(session)), 2.0)
    path = world.data_dir / "recordings" / f"{session}.cast"
    assert path.read_bytes() == cast(session)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    (noted,) = await events(world, "recording.uploaded")
    assert (noted["session"], noted["node"], noted["size"]) == (session, "n1", found.size)


async def test_it_goes_on_where_it_stopped_and_is_kept_once(world: World) -> None:
    session, caller, service = str(uuid.uuid4()), world.host("node", "n1"), world.auth.recordings
    data = cast(session, "x" * 1000, 40)
    await announce(world, "n1", session)
    assert (await service.offer(caller, session, offer(data))).received == 0
    assert (await service.append(caller, session, 0, data[:1000])).received == 1000
    assert (await service.offer(caller, session, offer(data))).received == 1000
    await service.append(caller, session, 1000, data[1000:])
    for _ in range(2):  # the answer may be lost
        assert (await service.complete(caller, session, offer(data))).kept
    assert (await service.offer(caller, session, offer(data))).kept
    assert len(await events(world, "recording.uploaded")) == 1


async def test_parts_out_of_order_are_refused_and_change_nothing(world: World) -> None:
    session, caller, service = str(uuid.uuid4()), world.host("node", "n1"), world.auth.recordings
    data = cast(session)
    await announce(world, "n1", session)
    with pytest.raises(NotFound, match="was not offered"):
        await service.append(caller, session, 0, data)
    await service.offer(caller, session, offer(data))
    for offset in (1, 10**9):
        with pytest.raises(recordings.Conflict, match="0 are here"):
            await service.append(caller, session, offset, data)
    await service.append(caller, session, 0, data)
    with pytest.raises(recordings.Conflict):
        await service.append(caller, session, 0, data)
    assert (await service.complete(caller, session, offer(data))).kept


@pytest.mark.parametrize("wrong", ["hash", "short", "header", "session"])
async def test_what_is_not_as_offered_is_dropped_and_can_be_sent_again(world: World, wrong: str) -> None:
    session, caller, service = str(uuid.uuid4()), world.host("node", "n1"), world.auth.recordings
    data = cast(session)
    await announce(world, "n1", session)
    bad = {
        "hash": data[:-5] + b"XXXX\n",
        "short": data[:-1],
        "header": b"no header\n" + data[10:],
        "session": cast(str(uuid.uuid4())),
    }[wrong]
    said = offer(data) if wrong in {"hash", "short"} else offer(bad)
    await service.offer(caller, session, said)
    await service.append(caller, session, 0, bad)
    with pytest.raises(Invalid):
        await service.complete(caller, session, said)
    assert list((world.data_dir / "recordings").glob("*.cast")) == []
    assert (await brought(world, "n1", data, session)).kept


async def test_nobody_overwrites_a_recording_not_even_its_node(world: World) -> None:
    session = await kept(world)
    other = cast(session, "forged")
    with pytest.raises(Exists):
        await brought(world, "n1", other, session)
    with pytest.raises(Exists):
        await world.auth.recordings.complete(world.host("node", "n1"), session, offer(other))
    assert (world.data_dir / "recordings" / f"{session}.cast").read_bytes() == cast(session)


async def test_a_node_brings_only_sessions_of_its_own(world: World) -> None:
    session, service = str(uuid.uuid4()), world.auth.recordings
    data = cast(session)
    with pytest.raises(SessionUnknown):
        await service.offer(world.host("node", "n1"), session, offer(data))
    await announce(world, "n1", session)
    await announce(world, "n2", session)  # who claims it later does not count
    with pytest.raises(Forbidden, match="another host's"):
        await service.offer(world.host("node", "n2"), session, offer(data))
    await service.offer(world.host("node", "n1"), session, offer(data))
    with pytest.raises(Forbidden, match="another host's"):
        await service.append(world.host("node", "n2"), session, 0, data)
    with pytest.raises(Forbidden, match="another host's"):
        await service.complete(world.host("node", "n2"), session, offer(data))


async def test_nobody_but_nodes_brings_recordings(world: World) -> None:
    session = str(uuid.uuid4())
    await announce(world, "n1", session)
    for caller in (world.host("proxy"), world.host("db", "n1"), world.host("admin"), world.user("alice")):
        with pytest.raises(Forbidden):
            await world.auth.recordings.offer(caller, session, offer(cast(session)))
        with pytest.raises(Forbidden):
            await world.auth.recordings.append(caller, session, 0, b"x")


@pytest.mark.parametrize(
    "name",
    ["../auth.db", "..", "index.db", "", "0" * 36, "A" * 8, "a/b", "%2e%2e", "0b5fd6f3-0a8e-4c1e-9a55-5d1f5a3c7e21\n"],
    ids=repr,
)
async def test_an_id_that_is_none_never_reaches_the_disk(world: World, name: str) -> None:
    node, service = world.host("node", "n1"), world.auth.recordings
    await announce(world, "n1", name)
    for call in (
        service.offer(node, name, offer(b"x")),
        service.append(node, name, 0, b"x"),
        service.complete(node, name, offer(b"x")),
        service.get(world.admin, name),
        service.content(world.admin, name),
        service.remove(world.admin, name),
    ):
        with pytest.raises(NotFound):
            await call
    assert not (world.data_dir / "recordings").exists() or list((world.data_dir / "recordings").glob("*.part")) == []


async def test_bounds_of_size_parts_number_and_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    node, service = world.host("node", "n1"), world.auth.recordings
    session = str(uuid.uuid4())
    await announce(world, "n1", session)
    with pytest.raises(Invalid, match="1 to "):
        await service.offer(node, session, offer(b"x", size=recordings.MAX_RECORDING + 1))
    await service.offer(node, session, offer(b"x" * 1000))
    with pytest.raises(Invalid, match="at most"):
        await service.append(node, session, 0, b"x" * (recordings.MAX_PART + 1))
    monkeypatch.setattr(recordings, "UNFINISHED", 1)
    another = str(uuid.uuid4())
    await announce(world, "n1", another)
    with pytest.raises(TooBusy, match="on their way"):
        await service.offer(node, another, offer(b"x"))
    world.clock.advance(days=8)
    node = world.host("node", "n1")
    await service.offer(node, another, offer(b"x"))  # the first is stale by now
    service._vault._free = 2**62
    with pytest.raises(TooBusy, match="no room"):
        await service.append(node, another, 0, b"x")


# --- giving


async def test_everybody_sees_their_own_and_auditors_see_all(world: World) -> None:
    own, others = await kept(world), await kept(world, f"bob@{CLUSTER}", "n2")
    service = world.auth.recordings

    async def seen(caller, **wanted) -> list[str]:
        return [one.id for one in (await service.list(caller, Filter(**wanted), 100, None)).recordings]

    alice, auditor = world.user("alice"), world.user("carol", ["auditor"])
    assert await seen(alice) == [own]
    assert await seen(auditor) == [others, own]
    assert await seen(world.admin, user=f"bob@{CLUSTER}") == [others]
    assert await seen(auditor, node="n1") == [own]
    assert await seen(auditor, node="web") == [others, own]
    assert await seen(auditor, since="2999-01-01T00:00:00+00:00") == []
    with pytest.raises(Forbidden):
        await seen(alice, user=f"bob@{CLUSTER}")
    assert (await service.get(alice, own)).id == own
    for call in (service.get(alice, others), service.content(alice, others)):
        with pytest.raises(NotFound, match=f"no recording {others}"):
            await call
    for caller in (world.host("node", "n1"), world.user("alice", destination=Destination("db", "orders"))):
        with pytest.raises(Forbidden):
            await seen(caller)


async def test_a_listing_goes_on_page_by_page(world: World) -> None:
    made = [await kept(world) for _ in range(5)]
    found, position = [], None
    while True:
        page = await world.auth.recordings.list(world.admin, Filter(), 2, position)
        found += [one.id for one in page.recordings]
        position = page.next
        if position is None:
            break
    assert found == made[::-1]
    for before in ("x", "/", "2030/../x"):
        with pytest.raises(Invalid):
            await world.auth.recordings.list(world.admin, Filter(), 2, before)


async def test_who_looked_is_in_the_audit_log_and_a_removal_too(world: World) -> None:
    session = await kept(world)
    service = world.auth.recordings
    size, octets = await service.content(world.user("carol", ["auditor"]), session)
    data = b"".join([chunk async for chunk in octets])
    assert (size, data) == (len(data), cast(session))
    (noted,) = await events(world, "recording.accessed")
    assert (noted["user"], noted["owner"], noted["session"]) == (f"carol@{CLUSTER}", f"alice@{CLUSTER}", session)
    for caller in (world.user("carol", ["auditor"]), world.user("alice", ["access", "editor"])):
        with pytest.raises(Forbidden):
            await service.remove(caller, session)
    await service.remove(world.admin, session)
    with pytest.raises(NotFound):
        await service.get(world.admin, session)
    assert [one["session"] for one in await events(world, "recording.removed")] == [session]
    assert list((world.data_dir / "recordings").glob("*.cast")) == []


async def test_a_node_cannot_say_that_a_recording_was_looked_at_or_uploaded(world: World) -> None:
    for name in ("recording.accessed", "recording.uploaded", "recording.removed"):
        with pytest.raises(Forbidden):
            await world.auth.service.emit(world.host("node"), [make(EventIds(world.clock), name, {})])


# --- over the wire


async def test_the_api_refuses_odd_paths_and_bodies(world: World) -> None:
    session = str(uuid.uuid4())
    await announce(world, "n1", session)
    async with world.http(world.host("node", "n1")) as http:
        for body in (
            {},
            {"size": 1},
            {"size": -1, "sha256": "0" * 64, "seconds": 0},
            {"size": 1, "sha256": "zz", "seconds": 0},
        ):
            assert (await http.post(f"/v1/recordings/{session}", json=body)).status_code == 400
        for path in ("..%2f..%2fauth.db", "a", session.upper() + "x"):
            body = offer(b"x").model_dump()
            assert (await http.post(f"/v1/recordings/{path}", json=body)).status_code in {404, 405}
        assert (await http.put(f"/v1/recordings/{session}/parts/-1", content=b"x")).status_code == 404
        assert (await http.put(f"/v1/recordings/{session}/parts/0", content=b"x")).status_code == 404
    async with world.http(world.admin) as http:
        assert (await http.get("/v1/recordings?limit=x")).status_code == 400


async def gone(folder: Recordings) -> None:
    """Until no recording waits any more."""
    async with asyncio.timeout(20):
        while list(folder.folder.glob("*.cast")):  # noqa: ASYNC110  files have no event
            await asyncio.sleep(0)


async def sent(tmp_path: Path, session: str, text: str = "hello") -> Recordings:
    """A node's folder with one recording that has ended."""
    found = Recordings(tmp_path / "node", Limits(free=0))
    (found.folder / f"{session}.cast").write_bytes(cast(session, text, 1000))
    return found


async def test_a_node_uploads_over_tls_and_forgets_only_then(world: World, tmp_path: Path) -> None:
    node, host_id = await world.host_client("node", "web")
    session = str(uuid.uuid4())
    folder = await sent(tmp_path, session, "x" * 600)  # more than one part
    assert (folder.folder / f"{session}.cast").stat().st_size > 2 * PART
    waits: list[float] = []

    async def sleep(seconds: float) -> None:  # the session's event comes later than the recording
        waits.append(seconds)
        assert folder.ended()
        await announce(world, host_id, session)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(upload(folder, node, MemoryLog(), sleep=sleep, rand=lambda: 1.0))
        await gone(folder)
        task.cancel()
    assert waits == [1.0]
    admin = world.admin_client()
    octets = b"".join([chunk async for chunk in admin.recording_content(session)])
    assert octets == cast(session, "x" * 600, 1000)
    (listed,) = (await admin.recordings_list()).recordings
    assert listed.sha256 == hashlib.sha256(octets).hexdigest()
    with pytest.raises(AuthError) as missing:
        await anext(admin.recording_content(str(uuid.uuid4())))
    assert missing.value.code == "not_found"


class Failing:
    """The auth service's client, cut off after so many calls."""

    def __init__(self, client, calls: int) -> None:
        self._client, self._left = client, calls

    def __getattr__(self, name: str):
        async def call(*arguments):
            self._left -= 1
            done = await getattr(self._client, name)(*arguments)
            if self._left < 0:
                raise AuthUnavailable("cut off")  # the answer is lost, whatever was done
            return done

        return call


@pytest.mark.parametrize("calls", range(5))
async def test_an_upload_that_breaks_anywhere_goes_on(world: World, tmp_path: Path, calls: int) -> None:
    node, host_id = await world.host_client("node", "web")
    session = str(uuid.uuid4())
    await announce(world, host_id, session)
    folder = await sent(tmp_path, session, "x" * 600)
    broke = asyncio.Event()

    async def sleep(_seconds: float) -> None:
        broke.set()
        await asyncio.get_running_loop().create_future()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(upload(folder, Failing(node, calls), MemoryLog(), sleep=sleep))
        async with asyncio.timeout(20):
            await broke.wait()
        task.cancel()
    assert folder.ended()
    world.auth.recordings._vault._owners.clear()  # as a restart of the auth service leaves it
    async with asyncio.TaskGroup() as group:
        task = group.create_task(upload(folder, node, MemoryLog(), sleep=sleep))
        await gone(folder)
        task.cancel()
    assert (await world.admin_client().recording(session)).size == len(cast(session, "x" * 600, 1000))


async def test_a_recording_that_is_refused_for_good_is_put_aside_and_told(world: World, tmp_path: Path) -> None:
    node, _ = await world.host_client("node", "web")
    session = str(uuid.uuid4())
    await announce(world, "another", session)
    folder, audit = await sent(tmp_path, session), MemoryLog()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(upload(folder, node, audit))
        await gone(folder)
        task.cancel()
    assert [event.type for event in audit.events] == ["session.recording.failed"]
    assert [path.name for path in folder.folder.iterdir()] == [f"{session}.refused"]


async def test_a_recording_that_is_none_is_sent_three_times_and_no_more(world: World, tmp_path: Path) -> None:
    node, host_id = await world.host_client("node", "web")
    session, other = str(uuid.uuid4()), str(uuid.uuid4())
    for each in (session, other):
        await announce(world, host_id, each)
    folder, audit = await sent(tmp_path, session), MemoryLog()
    (folder.folder / f"{session}.cast").write_bytes(cast(str(uuid.uuid4())))  # of another session
    (folder.folder / f"{other}.cast").write_bytes(cast(other))
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(upload(folder, node, audit, sleep=sleep, rand=lambda: 1.0))
        await gone(folder)
        task.cancel()
    assert pauses == [1.0, 2.0], "two more tries"
    [event] = audit.events
    assert (event.type, event.fields["session"]) == ("session.recording.failed", session)
    assert f"not of session {session}" in str(event.fields["reason"])
    assert [path.name for path in folder.folder.iterdir()] == [f"{session}.refused"]
    assert (await world.admin_client().recording(other)).id == other, "it holds up no other"


async def test_damage_on_the_nodes_disk_is_noticed_before_it_is_sent(world: World, tmp_path: Path) -> None:
    node, host_id = await world.host_client("node", "web")
    session = str(uuid.uuid4())
    await announce(world, host_id, session)
    folder, audit = Recordings(tmp_path / "node", Limits(free=0)), MemoryLog()
    said = {"id": session, "user": f"alice@{CLUSTER}", "connection": "c1"}
    tape = await folder.begin(Header(80, 24, 1_900_000_000, said), pytest.fail)
    tape.output(b"sudo rm")
    await tape.finish()
    (path,) = folder.ended()
    path.write_bytes(path.read_bytes().replace(b"sudo rm", b"sudo ls"))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(upload(folder, node, audit))
        await gone(folder)
        task.cancel()
    [event] = audit.events
    assert event.type == "session.recording.failed"
    assert event.fields.items() >= {"session": session, "user": f"alice@{CLUSTER}", "connection": "c1"}.items()
    assert "damaged on the node's disk" in str(event.fields["reason"])
    assert b"sudo ls" in path.with_suffix(".refused").read_bytes()
    with pytest.raises(AuthError, match="no recording"):
        await world.admin_client().recording(session)


async def test_what_a_kill_left_between_file_and_index_is_taken_up_again(tmp_path: Path, clock) -> None:
    session = str(uuid.uuid4())
    vault = recordings.Vault(tmp_path, clock, free=0)
    facts = recordings.Offer(len(cast(session)), hashlib.sha256(cast(session)).hexdigest(), 2.0)
    assert await vault.offer(session, "n1", facts) == 0
    await vault.append(session, 0, cast(session))
    (tmp_path / f"{session}.part").rename(tmp_path / f"{session}.cast")  # killed before the index knew
    await vault.close()
    again = recordings.Vault(tmp_path, clock, free=0)
    assert await again.offer(session, "n1", facts) == facts.size
    record = recordings.Recorded(session, "alice", "root", "n1", "web", "c1", "2030", 2.0, facts.size, facts.sha256)
    assert await again.complete(record)
    assert await again.get(session) == record
    await again.close()


async def test_the_service_finds_its_recordings_again(tmp_path: Path, clock) -> None:
    session = str(uuid.uuid4())
    for start in (True, False):
        local = await LocalAuth.open(tmp_path, CLUSTER, now=clock, hasher=fast_hasher())
        async with local:
            world = World.__new__(World)
            world.auth, world.clock, world.data_dir = local, clock, tmp_path
            if start:
                await announce(world, "n1", session)
                await brought(world, "n1", cast(session), session)
            assert (await local.recordings.get(world.host("admin", "admin.local"), session)).id == session
