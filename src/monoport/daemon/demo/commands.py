"""The commands that the demonstration prints: each works as it stands.

Belongs here: the lines and what each shows. Does not belong here: running them (check.py).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from monoport.daemon.demo.cluster import NAME, USER, Cluster


@dataclass(frozen=True, slots=True)
class Command:
    """One line to paste.

    why: what it shows. expect: text that its output must hold. arrives: whether it reaches the one port.
    """

    line: str
    why: str = ""
    expect: str = ""
    arrives: bool = True


class Commands:
    """The lines for one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def setup(self) -> Iterator[Command]:
        """Lines for the shell itself."""
        cluster = self._cluster
        yield Command(f'export PATH={shlex.quote(str(cluster.tools))}:"$PATH" TSH_HOME={cluster.root}/tsh')
        yield Command('[ -n "$SSH_AUTH_SOCK" ] || eval "$(ssh-agent -s)" >/dev/null')

    def all(self) -> Iterator[Command]:
        """Lines that reach something, in the order in which they build on each other."""
        yield from self._sign_in()
        yield from self._ssh()
        if self._cluster.database is not None:
            yield from self._database()
        yield from self._look()

    def _sign_in(self) -> Iterator[Command]:
        cluster = self._cluster
        login = f"tsh login --proxy=localhost:{cluster.port} --user={USER} --ca-pin={cluster.pin}"
        yield Command(f"echo {cluster.password} | {login}", "sign in; the CA pin replaces DNS and public certificates")
        yield Command("tsh ls", "what you may reach", "node")

    def _ssh(self) -> Iterator[Command]:
        login, root = self._cluster.login, self._cluster.root
        yield Command(f"tsh ssh {login}@node 'uname -sr'", "a shell command on the node", "Linux")
        proxy = '-o "ForwardAgent yes" -o "ProxyCommand tsh proxy ssh --user=%r %h:%p"'
        yield Command(
            f"ssh {proxy} {login}@node.{NAME} 'ssh-add -l'",
            "plain OpenSSH, your agent forwarded, no key to accept",
            "ECDSA",
        )
        yield Command(f"tsh config > {root}/ssh_config", "and its other tools, by a configuration", arrives=False)
        yield Command(f"scp -q -F {root}/ssh_config {root}/front.yaml {login}@node.{NAME}:{root}/copied-by-scp")
        yield Command(f"tsh scp {login}@node:{root}/copied-by-scp {root}/copied-back")

    def _database(self) -> Iterator[Command]:
        keys = f"{self._cluster.root}/tsh/keys/localhost"
        query = "select current_user, version()"
        connect = f"tsh db connect pg --db-user={USER} --db-name={USER}"
        yield Command(f"echo '{query}' | {connect}", "psql, with no password anywhere", USER)
        yield Command(f"tsh db login pg --db-user={USER} --db-name={USER}", "or any client, straight to the same port")
        words = (
            f"host=pg.db.localhost hostaddr=127.0.0.1 port={self._cluster.port} user={USER} dbname={USER} "
            f"sslmode=verify-full sslrootcert={keys}/certs.pem "
            f"sslcert={keys}/{USER}-db/{NAME}/pg-x509.pem sslkey={keys}/{USER}"
        )
        yield Command(f'psql "{words}" -c "{query}"', "", USER)

    def _look(self) -> Iterator[Command]:
        tctl = f"tctl -c {self._cluster.front}"
        port = self._cluster.port
        keys = f"{self._cluster.root}/tsh/keys/localhost"
        yield Command(
            f"curl -s --cacert {keys}/certs.pem https://localhost:{port}/webapi/ping && echo", "the web, too", NAME
        )
        yield Command(
            f"{tctl} route explain --sni localhost --alpn teleport-desktop",
            "why a connection goes where it goes",
            "not_enabled",
            arrives=False,
        )
        yield Command(f"{tctl} conns ls", "who is connected, and who was turned away and why", arrives=False)
        yield Command(f"{tctl} events ls", "what was done", f"{USER}@{NAME}", arrives=False)
        yield Command("tsh logout", "removes every certificate and its line in known_hosts", arrives=False)
