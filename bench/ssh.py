"""`make bench`, SSH: sessions through monoport's whole chain beside `ssh -J` through OpenSSH's own servers.

monoport's chain: `ssh` with `tsh proxy ssh` as its ProxyCommand, proxy, tunnel, node agent with its audit log.
OpenSSH's: `ssh -J`, a jump host's sshd, the node's sshd. Cipher (AES-128-GCM), type of the keys,
client and commands are the same. What is compared is the processor time of all processes of a chain, those that live
for one connection included; the client's side is also shown apart, since `ssh` itself is the same on both.

    ssh.py [--rounds N] [--scale F] [--work NAME,...] [--no-write]
"""

from __future__ import annotations

import argparse
import ctypes
import getpass
import os
import resource
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import rivals
from monoport.daemon.demo.cluster import NAME, Cluster, environment
from run import aligned, facts, spent

PAGE = rivals.HERE.parent / "docs" / "benchmarks-ssh.md"
GB = 1_000_000_000
BULK = 0.5  # GB in a round
SESSIONS = 40  # one after the other in a round of the set-up
SETTLE = 10.0  # seconds for the servers' children of a load to end
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
TICK = 1 / os.sysconf("SC_CLK_TCK")
CIPHER = "aes128-gcm@openssh.com"
SSHD = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
UseDNS no
Ciphers {cipher}
"""
SSH = """\
Host jump node
    HostName 127.0.0.1
    IdentityFile {folder}/user
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile {folder}/known_hosts
    StrictHostKeyChecking yes
    HostKeyAlias bench
    Ciphers {cipher}
Host jump
    Port {jump}
Host node
    Port {node}
    ProxyJump jump
"""


@dataclass(frozen=True, slots=True)
class Used:
    """What a load cost: processor time of the client's side and of the servers, wall time of each session, seconds."""

    client: float
    servers: float
    walls: tuple[float, ...]


@dataclass(slots=True)
class Chain:
    """One way to a node: how ssh is called for it, and the servers on it."""

    name: str
    ssh: list[str]
    env: dict[str, str]
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def cost(self, command: str, stdin: int | None, times: int) -> Used:
        """Run a command on the node, so many times one after the other."""
        living = [sum(1 for _ in family(one.pid)) for one in self.servers]
        known = set(own())
        before, client, walls = self._spent(), children(), []
        for _ in range(times):
            began = time.monotonic()
            load([*self.ssh, command], self.env, stdin)
            walls.append(time.monotonic() - began)
        deadline = time.monotonic() + SETTLE
        while orphans(known) or [sum(1 for _ in family(one.pid)) for one in self.servers] != living:
            if time.monotonic() > deadline:
                raise SystemExit(f"bench: {self.name}: processes of a session are still there after {SETTLE:g} s")
            select.select([], [], [], 0.02)
        return Used(children() - client, self._spent() - before, tuple(walls))

    def _spent(self) -> float:
        return sum(spent(pid) + reaped(pid) for one in self.servers for pid in family(one.pid))


def family(pid: int) -> Iterator[int]:
    """A process and all its descendants that live."""
    yield pid
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in file.read_text().split():
            yield from family(int(child))


def own() -> list[int]:
    """Our children, ended ones that nobody has waited for included."""
    return [int(child) for file in Path("/proc/self/task").glob("*/children") for child in file.read_text().split()]


def orphans(known: set[int]) -> bool:
    """Wait for what ssh ended without waiting for it, its proxy command; whether any of it still lives.

    Args: the children that we started ourselves.
    """
    return any(os.waitpid(child, os.WNOHANG)[0] == 0 for child in own() if child not in known)


def adopt() -> None:
    """Become the parent of descendants whose own has ended, so that what they cost is counted. Source: prctl(2)."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def reaped(pid: int) -> float:
    """Processor time of the children that a process has waited for, and theirs, seconds; exact to a tick."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[13]) + int(words[14])) * TICK


def children() -> float:
    """The same of our own children, which are the clients: exact."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def load(command: list[str], env: dict[str, str], stdin: int | None) -> None:
    """Run one session to its end."""
    done = subprocess.run(
        command,
        stdin=stdin or subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=env,
        timeout=600,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(command)}: {done.stderr.decode(errors='replace').strip()[-500:]}")


def set_up(chain: Chain, scale: float) -> Used:
    """Sessions that run `true`: per session."""
    times = max(int(SESSIONS * scale), 3)
    used = chain.cost("true", None, times)
    return Used(used.client / times, used.servers / times, used.walls)


def bulk_out(chain: Chain, scale: float) -> Used:
    """From the node to the client: per GB."""
    amount = int(GB * BULK * scale)
    return _per_gb(chain.cost(f"head -c {amount} /dev/zero", None, 1), amount)


def bulk_in(chain: Chain, scale: float) -> Used:
    """From the client to the node: per GB. What makes the bytes is no part of the cost."""
    amount = int(GB * BULK * scale)
    with tempfile.TemporaryFile() as zeros:  # sparse: reading it costs what /dev/zero costs, and it ends
        zeros.truncate(amount)
        return _per_gb(chain.cost("cat > /dev/null", zeros.fileno(), 1), amount)


def _per_gb(used: Used, amount: int) -> Used:
    whole = amount / GB
    return Used(used.client / whole, used.servers / whole, tuple(wall / whole for wall in used.walls))


WORKS: dict[str, tuple[str, Callable[[Chain, float], Used]]] = {
    "set-up": ("session that runs `true`", set_up),
    "out": ("node to client, per GB", bulk_out),
    "in": ("client to node, per GB", bulk_in),
}


def openssh(folder: Path) -> Chain:
    """A jump host and a node, each an sshd of its own."""
    sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if sshd is None:
        raise SystemExit("bench: no sshd: apt-get install openssh-server")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's, which Debian makes with the service
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "known_hosts").write_text(f"bench {(folder / 'host.pub').read_text()}")
    jump, node = rivals.free_ports(1), rivals.free_ports(1)
    config = folder / "ssh_config"
    config.write_text(SSH.format(folder=folder, cipher=CIPHER, jump=jump, node=node))
    chain = Chain("ssh -J", ["ssh", "-F", str(config), "node"], dict(os.environ))
    for name, port in (("jump", jump), ("node", node)):
        file = folder / f"{name}.conf"
        file.write_text(SSHD.format(port=port, folder=folder, cipher=CIPHER))
        log = folder / f"{name}.log"
        with log.open("wb") as out:
            chain.servers.append(subprocess.Popen([sshd, "-D", "-e", "-f", str(file)], stdout=out, stderr=out))
        rivals.wait(port, chain.servers[-1], log)
    return chain


def monoport(cluster: Cluster, folder: Path) -> Chain:
    """The demonstration's cluster, and the configuration that `tsh config` prints."""
    person = environment(cluster, "")
    login = ["login", f"--proxy=localhost:{cluster.port}", "--user=demo", f"--ca-pin={cluster.pin}", "--no-ssh-setup"]
    tsh = cluster.tool("tsh")
    subprocess.run(
        [tsh, *login], input=cluster.password + "\n", text=True, env=person, check=True, stdout=subprocess.DEVNULL
    )
    printed = subprocess.run([tsh, "config"], env=person, check=True, capture_output=True, text=True).stdout
    config = folder / "tsh_config"
    config.write_text(f"{printed}\nHost *\n    Ciphers {CIPHER}\n    StrictHostKeyChecking yes\n")
    words = ["ssh", "-F", str(config), f"{getpass.getuser()}@node.{NAME}"]
    return Chain("monoport", words, person, [one.process for one in cluster.processes if one.process is not None])


def run(works: list[str], rounds: int, scale: float) -> dict[str, dict[str, list[Used]]]:
    """Every figure of every round: results[work][chain]."""
    results: dict[str, dict[str, list[Used]]] = {work: {} for work in works}
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = Path(temporary)
        cluster = Cluster(folder, rivals.free_ports(1), temporary=True, kinds=())
        chains: list[Chain] = []
        try:
            for _, start in cluster.steps():
                start()
            chains.append(monoport(cluster, folder))
            chains.append(openssh(folder))
            for chain in chains:
                chain.cost("true", None, 1)  # what is made at the first connection is made now
            for number in range(rounds):
                print(f"round {number + 1} of {rounds}", file=sys.stderr)
                for work in works:
                    for chain in chains if number % 2 else chains[::-1]:
                        used = WORKS[work][1](chain, scale)
                        results[work].setdefault(chain.name, []).append(used)
                        note = f"client {used.client:7.3f}  servers {used.servers:7.3f}"
                        print(f"  {work:7} {chain.name:9} {note}  wall {max(used.walls):7.3f}", file=sys.stderr)
        finally:
            for one in (server for chain in chains if chain.name != "monoport" for server in chain.servers):
                one.terminate()
                one.wait(15)
            cluster.stop()
    return results


def table(results: dict[str, dict[str, list[Used]]]) -> list[list[str]]:
    """Header and rows: medians, and the median of the rounds' ratios."""
    rows = [["work", "monoport", "ssh -J", "ratio"]]

    def row(title: str, work: str, figure: Callable[[Used], float]) -> None:
        ours, theirs = ([figure(used) for used in results[work][name]] for name in ("monoport", "ssh -J"))
        ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
        form: Callable[[float], str] = (lambda s: f"{s * 1e3:.1f} ms") if work == "set-up" else "{:.2f} s".format
        rows.append([title, form(statistics.median(ours)), form(statistics.median(theirs)), f"{ratio:.2f}"])

    for work in results:
        row(f"{WORKS[work][0]}: processor time", work, lambda used: used.client + used.servers)
        row("  of it the client's side", work, lambda used: used.client)
        row("  of it the servers", work, lambda used: used.servers)
        if work == "set-up":
            for name, at in (("p50", 0.5), ("p99", 0.99)):
                row(f"  wall time, {name}", work, lambda used, at=at: percentile(used.walls, at))  # type: ignore[misc]
        else:
            row("  wall time", work, lambda used: used.walls[0])
    return rows


def percentile(values: tuple[float, ...], at: float) -> float:
    """The value that `at` of them do not pass."""
    return sorted(values)[min(int(len(values) * at), len(values) - 1)]


def main() -> int:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the amounts per round")
    parser.add_argument("--work", default=",".join(WORKS))
    parser.add_argument("--no-write", action="store_true", help="leave the page as it is")
    asked = parser.parse_args()
    adopt()
    results = run([work for work in WORKS if work in asked.work.split(",")], asked.rounds, asked.scale)
    text = aligned(table(results))
    print(text)
    if not asked.no_write:
        said = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr.split(",")[0]
        scaled = "" if asked.scale == 1 else f", amounts times {asked.scale:g}"
        PAGE.write_text(
            f"{HEAD}\n{text}\n\nMedians of {asked.rounds} rounds in one run{scaled} on {facts()}; {said}.\n"
        )
    return 0


HEAD = f"""# Benchmarks: SSH

The last table of `bench/ssh.py` (`make bench-ssh`), which `make bench` runs too: sessions through monoport's whole
chain (`ssh` with `tsh proxy ssh` as its ProxyCommand, proxy, tunnel, node agent with the audit log on) beside `ssh -J`
through a jump host's sshd to a node's sshd. Processor time of all processes of a chain; the client's
side is `ssh` and what it starts. Both ends of both chains use {CIPHER} and P-256 keys. In a round,
{SESSIONS} sessions one after the other, and {BULK:g} GB in each direction. Where the time goes is in
[decisions/0010-ssh-chain.md](decisions/0010-ssh-chain.md).
"""


if __name__ == "__main__":
    sys.exit(main())
