"""The commands that the demonstration prints: each works as it stands.

Belongs here: the lines, what each shows, which programs it needs. Does not belong here: running them (check.py).
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from monoport.daemon.demo.cluster import NAME, USER, Cluster
from monoport.daemon.demo.databases import ALL, MARIADB, POSTGRES

# Program -> the Debian package that brings it.
PACKAGES = {
    "ssh": "openssh-client",
    "scp": "openssh-client",
    "ssh-agent": "openssh-client",
    "ssh-add": "openssh-client",
    "psql": "postgresql-client",
    "mariadb": "mariadb-client",
    "curl": "curl",
}


@dataclass(frozen=True, slots=True)
class Command:
    """One line to paste.

    why: what it shows. expect: text that its output must hold. arrives: whether it reaches the one port.
    needs: programs that are not ours.
    """

    line: str
    why: str = ""
    expect: str = ""
    arrives: bool = True
    needs: tuple[str, ...] = ()


class Commands:
    """The lines for one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def setup(self) -> Iterator[Command]:
        """Lines for the shell itself."""
        cluster = self._cluster
        words = [f'PATH={shlex.quote(str(cluster.tools))}:"$PATH"', f"TSH_HOME={shlex.quote(str(cluster.home))}"]
        if cluster.has_ssh_agent:
            words.append(f"SSH_AUTH_SOCK={shlex.quote(str(cluster.agent_socket))}")
        yield Command(f"export {' '.join(words)}")

    def all(self) -> Iterator[Command]:
        """Lines that reach something, in the order in which they build on each other, as far as programs are here."""
        return (command for command in self._all() if not any(map(_lacks, command.needs)))

    def missing(self) -> Iterator[tuple[str, str]]:
        """What lines were left out for: the names of databases or programs, and the Debian package that brings them."""
        for kind in ALL:
            if kind not in self._cluster.kinds:
                yield kind.title, kind.package
        lacking = dict.fromkeys(program for command in self._all() for program in command.needs if _lacks(program))
        for package in dict.fromkeys(PACKAGES[program] for program in lacking):
            yield ", ".join(program for program in lacking if PACKAGES[program] == package), package

    def _all(self) -> Iterator[Command]:
        yield from self._sign_in()
        yield from self._ssh()
        if POSTGRES in self._cluster.kinds:
            yield from self._postgres()
        if MARIADB in self._cluster.kinds:
            yield from self._mariadb()
        yield from self._look()

    def _sign_in(self) -> Iterator[Command]:
        cluster = self._cluster
        login = f"tsh login --proxy=localhost:{cluster.port} --user={USER} --ca-pin={cluster.pin}"
        yield Command(f"echo {cluster.password} | {login}", "sign in; the CA pin replaces DNS and public certificates")
        yield Command("tsh ls", "what you may reach", "node")

    def _ssh(self) -> Iterator[Command]:
        login, root = self._cluster.login, self._cluster.root
        yield Command(f"tsh ssh {login}@node 'uname -sr'", "a shell command on the node", "Linux", needs=("ssh",))
        proxy = '-o "ForwardAgent yes" -o "ProxyCommand tsh proxy ssh --user=%r %h:%p"'
        yield Command(
            f"ssh {proxy} {login}@node.{NAME} 'ssh-add -l'",
            "plain OpenSSH, your agent forwarded, no key to accept",
            "ECDSA",
            needs=("ssh", "ssh-agent", "ssh-add"),
        )
        files = ("ssh", "scp")
        yield Command(
            f"tsh config > {root}/ssh_config", "and its other tools, by a configuration", arrives=False, needs=files
        )
        yield Command(
            f"scp -q -F {root}/ssh_config {root}/front.yaml {login}@node.{NAME}:{root}/copied-by-scp", needs=files
        )
        yield Command(f"tsh scp {login}@node:{root}/copied-by-scp {root}/copied-back", needs=files)

    def _login(self, name: str) -> Command:
        login = f"tsh db login {name} --db-user={USER} --db-name={USER}"
        return Command(login, "or any client, straight to the same port")

    def _postgres(self) -> Iterator[Command]:
        name, keys = POSTGRES.name, self._keys
        query = "select current_user, version()"
        connect = f"tsh db connect {name} --db-user={USER} --db-name={USER}"
        yield Command(f"echo '{query}' | {connect}", "psql, with no password anywhere", USER, needs=("psql",))
        yield self._login(name)
        words = (
            f"host={name}.db.localhost hostaddr=127.0.0.1 port={self._cluster.port} user={USER} dbname={USER} "
            f"sslmode=verify-full sslrootcert={keys}/certs.pem "
            f"sslcert={keys}/{USER}-db/{NAME}/{name}-x509.pem sslkey={keys}/{USER}"
        )
        yield Command(f'psql "{words}" -c "{query}"', "", USER, needs=("psql",))

    def _mariadb(self) -> Iterator[Command]:
        name, keys = MARIADB.name, self._keys
        query = "select current_user(), version()"
        connect = f"tsh db connect {name} --db-user={USER} --db-name={USER}"
        yield Command(f"echo '{query}' | {connect}", "the same with mariadb", USER, needs=("mariadb",))
        yield self._login(name)
        words = (
            f"--no-defaults --protocol=tcp --host=localhost --port={self._cluster.port} --user={USER} "
            f"--ssl-verify-server-cert --ssl-ca={keys}/certs.pem "
            f"--ssl-cert={keys}/{USER}-db/{NAME}/{name}-x509.pem --ssl-key={keys}/{USER}"
        )
        why = "its clients wait to be greeted: where so configured, silence is answered"
        yield Command(f'mariadb {words} -e "{query}" {USER}', why, USER, needs=("mariadb",))

    @property
    def _keys(self) -> str:
        return f"{self._cluster.home}/keys/localhost"

    def _look(self) -> Iterator[Command]:
        tctl = f"tctl -c {self._cluster.front}"
        port = self._cluster.port
        yield Command(
            f"curl -s --cacert {self._keys}/certs.pem https://localhost:{port}/webapi/ping && echo",
            "the web, too",
            NAME,
            needs=("curl",),
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


def _lacks(program: str) -> bool:
    return shutil.which(program) is None
