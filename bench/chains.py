"""The ways to a database that are compared: monoport's whole chain, and hops of HAProxy.

Belongs here: starting and stopping them, and what their processes have spent. Does not belong here: load and figures.
"""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pki
import rivals
from monoport.daemon.demo.cluster import Cluster, environment
from run import spent
from servers import until

AGENT = """\
version: v3
teleport:
  nodename: {name}
  data_dir: {root}/{name}
  proxy_server: localhost:{port}
  ca_pin: {pin}
  join_params: {{method: token, token_name: {token}}}
  dial_back: {dial_back}
db_service:
  enabled: yes
  databases:
"""


@dataclass(slots=True)
class Chain:
    """One way to a server: where it begins, as whom, and the processes that it is made of.

    beside: processes that belong to no hop, and are not counted.
    """

    name: str
    port: int
    user: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    own: list[subprocess.Popen[bytes]] = field(default_factory=list)
    beside: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def spent(self) -> float:
        """Processor time of all its processes so far, seconds."""
        return sum(spent(one.pid) for one in [*self.processes, *self.own])

    def stop(self) -> None:
        """End what was started for it alone."""
        for one in [*self.own, *self.beside]:
            one.send_signal(signal.SIGTERM)
            one.wait(15)


class Monoport:
    """The demonstration's cluster, with agents for more databases, and a local proxy for each."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        words = [
            "login", f"--proxy=localhost:{cluster.port}", "--user=demo", f"--ca-pin={cluster.pin}", "--no-ssh-setup",
        ]  # fmt: skip
        subprocess.run(
            [cluster.tool("tsh"), *words],
            input=cluster.password + "\n", text=True, env=environment(cluster, ""), check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        daemons = {one.name: one.process for one in cluster.processes if one.process is not None}
        self._front, self._agent = daemons["front"], daemons["agent"]
        self._agents: list[subprocess.Popen[bytes]] = []

    def chain(self, database: str, agent: subprocess.Popen[bytes] | None = None, name: str = "monoport") -> Chain:
        """A local proxy for a database, with the processes behind it."""
        chain = Chain(name, rivals.free_ports(1), "demo", [self._front, agent or self._agent])
        words = [self._cluster.tool("tsh"), "proxy", "db", "--tunnel", "-p", str(chain.port), database]
        near = subprocess.Popen(words, env=environment(self._cluster, ""), stdout=subprocess.PIPE)
        assert near.stdout is not None
        near.stdout.readline()
        chain.own.append(near)
        return chain

    def agent(self, name: str, databases: list[dict[str, str]], *, dial_back: bool = True) -> subprocess.Popen[bytes]:
        """Another agent for these databases, once the cluster knows them."""
        cluster = self._cluster
        token = json.loads(cluster.tctl("tokens", "add", "--type=db", "--format=json"))["token"]
        config, log = cluster.root / f"{name}.yaml", cluster.root / f"{name}.log"
        text = AGENT.format(
            name=name, root=cluster.root, port=cluster.port, pin=cluster.pin, token=token,
            dial_back="yes" if dial_back else "no",
        )  # fmt: skip
        config.write_text(text + "".join(f"    - {json.dumps(one)}\n" for one in databases))
        config.chmod(0o600)
        with log.open("wb") as file:
            process = subprocess.Popen([cluster.tool("monoport"), "start", "-c", str(config)], stdout=file, stderr=file)
        self._agents.append(process)
        until(lambda: {one["name"] for one in databases} <= self._known(), f"the databases of agent {name}")
        return process

    def _known(self) -> set[str]:
        return {one["name"] for one in json.loads(self._cluster.tctl("db", "ls", "--format=json"))}

    def certificate(self, name: str) -> Path:
        """What `tctl auth sign --format=db` writes for a server on localhost."""
        prefix = self._cluster.root / name
        self._cluster.tctl("auth", "sign", "--format=db", "--host=localhost,127.0.0.1", f"--out={prefix}")
        return prefix

    def stop(self) -> None:
        """End the agents that were started here."""
        for one in self._agents:
            one.send_signal(signal.SIGTERM)
            one.wait(15)


def haproxy(files: pki.Pki, folder: Path, server: int, user: str, *, secured: bool) -> Chain:
    """Two hops of one thread each: plaintext to TLS with a client certificate, TLS to the server.

    secured: the second hop reaches the server over TLS with a client certificate too, as an agent does. As HAProxy
    speaks no database's request for TLS, a third one, which is not counted, stands for the server's own TLS.
    """
    name = f"{'secured' if secured else 'haproxy'}-{server}"
    first, second, third = (rivals.free_ports(1) for _ in range(3))
    both = folder / "user.pem"
    both.write_text(files.user_certificate.read_text() + files.user_key.read_text())
    checked = f"ca-file {files.host_ca} verify required sni str(localhost) verifyhost localhost ssl-min-ver TLSv1.3"
    common = f"alpn {rivals.DATABASE}"
    asked = f"ssl crt {files.both} {common} ssl-min-ver TLSv1.3 ca-file {files.user_ca} verify required"
    ends = {
        "near": f"    bind 127.0.0.1:{first}\n    server far 127.0.0.1:{second} ssl crt {both} {checked} {common}\n",
        "far": f"    bind 127.0.0.1:{second} {asked}\n    server one 127.0.0.1:{third if secured else server}"
        + (f" ssl crt {both} {checked} {common}\n" if secured else "\n"),
    }
    if secured:
        ends["end"] = f"    bind 127.0.0.1:{third} {asked}\n    server one 127.0.0.1:{server}\n"
    chain = Chain("secured" if secured else "haproxy", first, user)
    for end, lines in ends.items():
        config, log = folder / f"{name}-{end}.cfg", folder / f"{name}-{end}.log"
        config.write_text(
            "global\n    nbthread 1\n    maxconn 1000\n"
            "defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n"
            f"listen {end}\n{lines}"
        )
        with log.open("wb") as file:
            one = subprocess.Popen(["haproxy", "-db", "-f", str(config)], stdout=file, stderr=file)
        (chain.beside if end == "end" else chain.own).append(one)
        rivals.wait({"near": first, "far": second, "end": third}[end], one, log)
    return chain
