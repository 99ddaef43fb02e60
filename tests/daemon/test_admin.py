"""`tctl route explain`: what the daemon answers is what its listener does."""

from __future__ import annotations

import pytest

from monoport.access.resources import Lock, parse_document
from monoport.auth import keys
from monoport.daemon.admin import Question, answer
from monoport.daemon.reach import Aim
from monoport.errors import Failure
from monoport.net.tls import HandshakeError

from ..scenarios.cluster import CLUSTER, PUBLIC, Cluster  # noqa: TID252 # tests are no package

BOB = {"kind": "user", "metadata": {"name": "bob"}, "spec": {"roles": ["access"], "traits": {"logins": ["bob"]}}}

OFFERS: list[tuple[str, tuple[str, ...]]] = [
    (PUBLIC, ()),
    (PUBLIC, ("http/1.1",)),
    (PUBLIC, ("teleport-proxy-ssh",)),
    (PUBLIC, ("http/1.1", "teleport-reversetunnel")),
    (PUBLIC, ("teleport-postgres",)),
    (PUBLIC, ("teleport-mysql",)),
    (PUBLIC, ("irc",)),
    (CLUSTER, (f"teleport-auth@{CLUSTER}",)),
    (f"kube.{PUBLIC}", ("h2",)),
    (f"orders.db.{PUBLIC}", ()),
    (PUBLIC.upper(), ()),
    ("bootstrap.teleport.cluster.local", ()),
]


def identity(answered: dict[str, object]) -> tuple[str, str]:
    """Verdict and reason of the last step, which is about who calls."""
    step = answered["steps"][-1]  # type: ignore[index]
    assert step["rule"] == "identity"
    return step["verdict"], step["why"]


@pytest.mark.parametrize(("sni", "alpn"), OFFERS, ids=str)
async def test_explain_agrees_with_the_listener(cluster: Cluster, sni: str, alpn: tuple[str, ...]) -> None:
    explained = answer(Question(sni=sni, alpn=list(alpn)), cluster.proxy.front, cluster.known)
    won = [step["rule"] for step in explained["steps"] if step["verdict"] == "won"]

    try:
        await cluster.tls(*alpn, sni=sni)
    except HandshakeError:
        refusal = cluster.proxy.connections.refusals[-1].refusal
        assert explained["outcome"] == f"refused: {refusal.code}: {refusal.reason}"
        assert won == [refusal.rule]
    else:
        (row,) = cluster.proxy.connections.rows()
        assert won == [row["rule"]]
        assert explained["outcome"].startswith(str(row["kind"]))
        assert explained["outcome"].endswith(f"by rule {row['rule']}")


async def test_whose_certificate_it_is(cluster: Cluster) -> None:
    alice = await cluster.user("alice")
    question = Question(sni=PUBLIC, alpn=["teleport-postgres"], certificate=alice.certificates.certificate)
    verdict, why = identity(answer(question, cluster.proxy.front, cluster.known))
    assert verdict == "known"
    assert why.startswith("alice@example.com, roles access, until ")

    locked = parse_document({"kind": "lock", "metadata": {"name": "l"}, "spec": {"target": {"user": "alice"}}})
    assert isinstance(locked, Lock)
    await cluster.admin.create(locked)
    await cluster.until(lambda: cluster.known.locks)
    assert identity(answer(question, cluster.proxy.front, cluster.known))[0] == "locked"


async def test_a_user_without_a_certificate_at_hand(cluster: Cluster) -> None:
    question = Question(sni=PUBLIC, alpn=["teleport-postgres"], user=BOB)
    verdict, why = identity(answer(question, cluster.proxy.front, cluster.known))
    assert verdict == "assumed"
    assert why.startswith("bob@example.com, roles access, until ")
    assert "access" not in answer(question, cluster.proxy.front, cluster.known)


async def test_which_rule_decides_about_a_user_and_a_node(cluster: Cluster) -> None:
    await cluster.node("web")
    question = Question(user=BOB, aim=Aim(node="web", login="bob"))
    answered = answer(question, cluster.proxy.front, cluster.known)
    assert answered["outcome"] == "ssh, by rule ssh"
    last = answered["access"][-1]
    assert last["verdict"] == "allowed"
    assert last["why"].startswith(
        "role access: allow.node_labels has * and allow.logins has {{internal.logins}} for bob"
    )
    question = Question(user=BOB, aim=Aim(node="web", login="root"))
    last = answer(question, cluster.proxy.front, cluster.known)["access"][-1]
    assert last == {
        "rule": "decision",
        "verdict": "denied",
        "why": "certificate: login root is not among its principals",
    }


async def test_which_rule_decides_about_a_certificate_and_a_database(cluster: Cluster) -> None:
    alice = await cluster.user("alice")
    await cluster.database("orders", 1)
    for user, verdict, why in (
        ("alice", "allowed", "role access: allow.db_labels has * and allow.db_users has {{internal.db_users}} for "),
        ("postgres", "denied", "no role allows postgres by allow.db_users; looked at role access: allow.db_users has "),
    ):
        aim = Aim(db="orders", db_user=user, db_name="app")
        question = Question(certificate=alice.certificates.certificate, aim=aim)
        answered = answer(question, cluster.proxy.front, cluster.known)
        assert answered["outcome"].startswith("database")
        assert answered["access"][-1]["verdict"] == verdict
        assert answered["access"][-1]["why"].startswith(why)


async def test_a_session_that_begins_in_no_database_is_decided_as_the_listener_does(cluster: Cluster) -> None:
    await cluster.database("stock", 1, "mysql")
    await cluster.database("orders", 2)
    user = {**BOB, "spec": {"roles": ["access"], "traits": {"db_users": ["bob"], "db_names": ["app"]}}}
    for aim, verdict in (
        (Aim(db="stock", db_user="bob"), "allowed"),
        (Aim(db="stock", db_user="bob", db_name="app"), "allowed"),
        (Aim(db="stock", db_user="bob", db_name="other"), "denied"),
    ):
        answered = answer(Question(user=user, aim=aim), cluster.proxy.front, cluster.known)
        assert answered["access"][-1]["verdict"] == verdict, aim
    for aim, said in (
        (Aim(db="stock"), "a session of stock is a database user's: expected --db-user"),
        (Aim(db="orders", db_user="bob"), "a PostgreSQL session of orders names a database: expected --db-name"),
    ):
        with pytest.raises(Failure, match=said):
            answer(Question(user=user, aim=aim), cluster.proxy.front, cluster.known)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (Question(user=BOB, aim=Aim(node="nix")), 'no node "nix" is there'),
        (Question(user=BOB, aim=Aim(db="nix")), 'no database "nix" is there'),
        (Question(sni=PUBLIC, aim=Aim(node="nix")), "whose access"),
        (Question(sni=PUBLIC, user={"kind": "role", "metadata": {"name": "x"}}, aim=Aim(node="x")), "not a role"),
        (Question(sni=PUBLIC, certificate="no PEM", aim=Aim(node="x")), "the certificate cannot be read"),
    ],
)
async def test_a_question_about_access_that_has_no_answer(cluster: Cluster, question: Question, said: str) -> None:
    with pytest.raises(Failure, match=said):
        answer(question, cluster.proxy.front, cluster.known)


async def test_a_protocol_that_is_not_known_here_is_named(cluster: Cluster) -> None:
    await cluster.database("orders", 1)
    question = Question(user=BOB, aim=Aim(db="orders"))
    with pytest.raises(Failure, match=r"protocol postgres of orders is not known here: name it in teleport\.protocols"):
        answer(question, cluster.proxy.front, cluster.known, {})


async def test_a_hosts_certificate_where_users_are_expected(cluster: Cluster) -> None:
    """As the listener has it, whose TLS trusts the user CA alone there."""
    pair, granted = await cluster.auth.admit("node", "web")
    question = Question(sni=PUBLIC, alpn=["teleport-postgres"], certificate=granted.certificate)
    verdict, why = identity(answer(question, cluster.proxy.front, cluster.known))
    assert verdict == "refused"
    assert "of the host CA" in why

    context = cluster.trusting()
    keys.load_chain(context, granted.certificate, pair.private)
    client = await cluster.tls("teleport-postgres", context=context)
    with pytest.raises(ConnectionError):
        await client.read()
    assert cluster.refused() == "handshake_failed"


@pytest.mark.parametrize("certificate", ["no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
async def test_what_is_no_certificate(cluster: Cluster, certificate: str) -> None:
    question = Question(sni=PUBLIC, alpn=["teleport-postgres"], certificate=certificate)
    assert identity(answer(question, cluster.proxy.front, cluster.known))[0] == "refused"


async def test_where_no_certificate_is_asked_for(cluster: Cluster) -> None:
    alice = await cluster.user("alice")
    question = Question(sni=PUBLIC, alpn=["teleport-proxy-ssh"], certificate=alice.certificates.certificate)
    last = answer(question, cluster.proxy.front, cluster.known)["steps"][-1]
    assert (last["rule"], last["verdict"]) == ("client certificate", "not asked")


async def test_a_name_that_is_none(cluster: Cluster) -> None:
    with pytest.raises(Failure, match="host name"):
        answer(Question(sni="a b"), cluster.proxy.front, cluster.known)
