"""A PostgreSQL that knows its users by password, through the whole cluster: who connects never sees one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .cluster import Cluster, Person, wait_until
from .postgres import HBA, PostgresServer, straight

PASSWORD = "correct horse battery staple"
LINE = "hostssl all all 127.0.0.1/32 scram-sha-256\n"


@pytest.fixture
def vault(cluster: Cluster, dba: Person, server: PostgresServer, tmp_path: Path) -> Iterator[Path]:
    """The server as the database `vault`, which asks for passwords while the test runs; the agent's file."""
    file = tmp_path / "passwords"
    file.write_text(f"alice:{PASSWORD}\n")
    file.chmod(0o600)
    server.sql(f"alter role alice password '{PASSWORD}'")
    server.set_hba("local all all trust\n" + LINE)
    agent = cluster.agent(
        "vaulthost",
        "db",
        "db_service:\n  enabled: yes\n  databases:\n"
        f"    - {{name: vault, protocol: postgresql, uri: 'localhost:{server.port}', password_file: {file}}}\n",
    )
    try:
        agent.start()
        wait_until(lambda: "vault" in dba.tsh("db", "ls").stdout, 15, "the database in tsh db ls")
        yield file
        assert PASSWORD not in agent.text()
    finally:
        agent.stop()
        cluster.tctl("rm", "db/vault", code=None)
        server.set_hba(HBA)


def test_psql_without_a_password(cluster: Cluster, dba: Person, server: PostgresServer, vault: Path, need) -> None:
    psql = need("psql")
    who = "select current_user || '/' || current_database()"
    done = dba.tsh("db", "connect", "vault", "--db-user=alice", "--db-name=app", stdin=who + ";\n")
    assert "alice/app" in done.stdout
    dba.tsh("db", "login", "vault", "--db-user=alice", "--db-name=app")
    words = straight(cluster, dba, database="vault")
    assert dba.run(psql, words, "-wXAtqc", who).stdout == "alice/app\n"
    vault.write_text("alice:not this one\n")
    refused = dba.run(psql, words, "-wXAtqc", who, code=2)
    assert 'database "vault" does not take its agent\'s password for "alice"' in refused.stderr
    assert "not this one" not in refused.stderr
    assert PASSWORD not in cluster.tctl("events", "ls", "--format=json").stdout
    assert PASSWORD not in cluster.front.text()
