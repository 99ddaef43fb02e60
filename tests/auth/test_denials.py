"""Who is refused by a rule learns what; the audit log learns by which rule, within bounds."""

from __future__ import annotations

import pytest

from monoport.access.identity import Identity, Kind
from monoport.audit.segments import SpoolError
from monoport.auth import denials
from monoport.auth.client import AuthError
from monoport.auth.denials import Denials
from monoport.auth.keys import generate
from monoport.auth.refusals import Forbidden, NameOwned, NotFound

from .test_outage import fill, free
from .test_recordings import events, kept

PAIR = generate()


async def denied(world):
    """The fields of every auth.deny, the newest first."""
    return await events(world, "auth.deny")


async def post(world, caller, path, **body):
    async with world.http(caller) as http:
        return await http.post(path, json={"public_key": PAIR.public, **body})


@pytest.fixture
async def prod(world, make_database, make_role):
    """The database `prod` behind one agent, and alice, who may be app there, but never mallory."""
    await world.put(make_role("never", deny={"db_users": ["mallory"]}))
    await world.add_user("alice", ("access", "never"), db_users=("app", "mallory"), db_names=("main",))
    agent = await world.joined("db", "agent-1")
    await world.auth.service.heartbeat(agent, make_database("prod", "agent-1", env="prod"))
    return agent


def alice(world, **values):
    return world.user(
        roles=("access", "never"), traits={"db_users": ("app", "mallory"), "db_names": ("main",)}, **values
    )


@pytest.mark.usefixtures("prod")
async def test_a_refused_certificate_for_a_database_names_the_rule_in_the_audit_log_alone(world):
    to = {"kind": "db", "name": "prod", "user": "mallory", "database": "main"}
    answer = await post(world, alice(world, login_ip="192.0.2.7"), "/v1/reissue", destination=to)
    assert answer.status_code == 403
    assert '\\"mallory\\"' in answer.text
    assert "never" not in answer.text
    assert "deny.db_users" not in answer.text
    [event] = await denied(world)
    assert event == {
        "user": "alice@example.com",
        "login_ip": "192.0.2.7",
        "operation": "reissue",
        "database": "prod",
        "db_user": "mallory",
        "db_name": "main",
        "reason": answer.json()["error"]["message"],
        "rule": "role never: deny.db_users has mallory",
        "denials": 1,
    }


@pytest.mark.usefixtures("prod")
async def test_a_database_out_of_reach_is_unknown_to_the_user_and_denied_in_the_audit_log(world, make_role):
    await world.put(make_role("never", deny={"db_labels": {"env": "prod"}}))
    answers = [
        await post(world, alice(world), "/v1/reissue", destination={"kind": "db", "name": name})
        for name in ("prod", "absent")
    ]
    assert [one.status_code for one in answers] == [404, 404]
    assert answers[0].text.replace("prod", "absent") == answers[1].text
    [event] = await denied(world)
    assert (event["database"], event["rule"]) == ("prod", "role never: deny.db_labels has env=prod")
    async with world.http(alice(world)) as http:
        assert (await http.get("/v1/resources/db/prod")).status_code == 404
    event = (await denied(world))[0]
    assert (event["operation"], event["kind"], event["name"]) == ("get", "db", "prod")
    assert event["rule"] == "role never: deny.db_labels has env=prod"


async def test_an_agent_that_asks_for_a_user_whom_the_role_denies(world, prod):
    certificate = world.auth._parts.issuer.user(alice(world), {}, PAIR.public, None).certificate
    ask = {"certificate": certificate, "name": "prod", "user": "mallory", "database": "main", "connection": "c0ffee"}
    answer = await post(world, prod, "/v1/certificates/database-client", **ask)
    assert answer.status_code == 403
    assert "never" not in answer.text
    [event] = await denied(world)
    assert (
        event.items()
        >= {
            "operation": "database_client",
            "connection": "c0ffee",
            "user": "alice@example.com",
            "host_id": str(prod),
            "database": "prod",
            "db_user": "mallory",
            "rule": "role never: deny.db_users has mallory",
        }.items()
    )


async def test_verbs_of_the_api_name_kind_verb_and_rule_and_never_a_tokens_value(world):
    async with world.http(alice(world)) as http:
        for path in ("/v1/resources/role/admin", "/v1/resources/token/the-secret-value"):
            assert (await http.delete(path)).status_code == 403
        assert (await http.post("/v1/users", json={"name": "x", "roles": ["access"], "password": "p"})).is_error
    users, token, role = await denied(world)
    assert role["rule"] == "role never: does not exist"
    assert (role["operation"], role["kind"], role["verb"], role["name"]) == ("delete", "role", "delete", "admin")
    assert (token["operation"], token["kind"]) == ("delete", "token")
    assert "the-secret-value" not in str(token)
    assert (users["operation"], users["kind"], users["verb"]) == ("users_add", "user", "create")


async def test_recordings_of_others(world):
    session = await kept(world)
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        async with world.http(world.user("bob")) as http:
            answer = await http.request(method, f"/v1/recordings/{session}{path}")
        assert answer.status_code == (403 if method == "DELETE" else 404)
        event = (await denied(world))[0]
        assert (event["user"], event["session"]) == ("bob@example.com", session)
        assert event["operation"] == {"GET": "recording_get", "GET/content": "recording_content"}.get(
            method + path, "recording_remove"
        )
        assert "of recording in allow.rules" in event["rule"]
    assert (await denied(world))[1]["owner"] == "alice@example.com"
    async with world.http(world.user("bob")) as http:
        assert (await http.get("/v1/recordings?user=alice@example.com")).status_code == 403
        absent = (await http.get("/v1/recordings/0b5fd6f3-0a8e-4c1e-9a55-5d1f5a3c7e21")).status_code
    assert absent == 404
    assert len(await denied(world)) == 4, "what does not exist was refused by no rule"
    assert await events(world, "recording.accessed") == []


async def test_a_watch_that_is_refused(world):
    await world.add_user()
    client = await world.user_client()
    with pytest.raises(AuthError, match="cannot watch"):
        await anext(client.watch())
    assert [one["operation"] for one in await denied(world)] == ["watch"]


async def test_a_denial_is_kept_late_on_a_full_disk_and_fails_nothing(world, monkeypatch):
    monkeypatch.setattr("monoport.audit.outage.PAUSE", 0)
    await fill(world)
    async with world.http(alice(world)) as http:
        answers = [await http.get("/v1/resources/role") for _ in range(40)]
    assert {one.status_code for one in answers} == {403}
    assert world.auth.outage.problem
    await free(world)
    assert len(await denied(world)) == 40


class Log:
    """Takes events, or fails."""

    def __init__(self):
        self.fields, self.fails = [], False

    async def __call__(self, event_type, **fields):
        if self.fails:
            raise SpoolError("cannot write /var/lib/x")
        assert event_type == "auth.deny"
        self.fields.append(fields)


def who(name, clock):
    return Identity(Kind.USER, name, "example.com", expires=clock())


async def test_one_caller_makes_so_many_events_and_the_next_says_how_many_were_left_out(clock):
    log, seconds = Log(), [0.0]
    noting = Denials(log, lambda: seconds[0])
    denial = Forbidden("cannot list user: access denied", "no role has it")
    for _ in range(1000):
        await noting.note(who("alice", clock), "list", denial, {})
    assert len(log.fields) == denials.EVENTS
    await noting.note(who("bob", clock), "list", denial, {})
    assert log.fields[-1]["denials"] == 1, "others have bounds of their own"
    seconds[0] += 1 / denials.REFILL
    await noting.note(who("alice", clock), "list", denial, {})
    assert log.fields[-1]["denials"] == 1000 - denials.EVENTS + 1
    for number in range(denials.CALLERS + 10):
        await noting.note(who(f"u{number}", clock), "list", denial, {})
    assert len(noting._callers) == denials.CALLERS


async def test_what_no_rule_decided_or_is_recorded_already_makes_no_event_and_a_failure_is_no_other_answer(clock):
    log = Log()
    noting = Denials(log)
    await noting.note(who("alice", clock), "get", NotFound("no role/x"), {})
    await noting.note(who("alice", clock), "join", NameOwned("the name is others'", "owned by token/one"), {})
    assert log.fields == []
    log.fails = True
    await noting.note(who("alice", clock), "list", Forbidden("no", "a rule"), {})
