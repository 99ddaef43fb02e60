"""What a login left behind: where the proxy is, who we are there, and the paths of the files that prove it.

Belongs here: the layout of TSH_HOME, reading and writing profiles, which of several proxies is meant.
Does not belong here: what is in a certificate, how the proxy is reached, programs other than ours.
This file is on the way of every ssh connection: it imports neither cryptography nor asyncio.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from monoport.client import files
from monoport.client.names import Address, file_name
from monoport.errors import Failure

CURRENT = "current-profile"  # in TSH_HOME: the host of the proxy that commands mean unless told
MAX_PROFILE = 1 << 20  # bytes; a profile is a few KiB, most of it the CAs


@dataclass(frozen=True, slots=True)
class Profile:
    """One user's login at one proxy.

    `cas` are the cluster's CAs as the login brought them, `auth.authorities.TrustedCas` in JSON.
    `trust` says how the web certificate was verified at login: "roots", "pin" or "insecure". `server_name` is the name
    that the proxy's host-CA certificate is checked for. `plain_ssh` is the proxy's own SSH port, used where the
    proxy does not route by ALPN. `database_ports` are those for one protocol's clients, by `Description.listen_key`.
    """

    proxy: Address
    user: str
    cluster: str
    server_name: str
    expires: datetime
    cas: Mapping[str, Any] = field(hash=False)
    logins: tuple[str, ...] = ()
    trust: str = "roots"
    tls_routing: bool = True
    plain_ssh: Address | None = None
    database_ports: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def host_cas(self) -> tuple[str, ...]:
        """The cluster's host CAs, PEM."""
        return tuple(self.cas["host"])

    @property
    def ssh_host_cas(self) -> tuple[str, ...]:
        """The cluster's SSH host CA keys, as authorized_keys lines."""
        return tuple(self.cas["ssh_host"])

    @property
    def ssh_doors(self) -> tuple[Address, ...]:
        """Where the proxy's own SSH is reached without TLS: on the one port, and on its own where it has one."""
        return (self.proxy,) if self.plain_ssh in {None, self.proxy} else (self.proxy, self.plain_ssh)

    def left(self, now: datetime) -> float:
        """Seconds until the login ends, negative afterwards."""
        return (self.expires - now).total_seconds()

    def login_again(self) -> str:
        """The command that renews this login."""
        return f"log in again: tsh login --proxy={self.proxy} --user={self.user}"

    def check(self, now: datetime | None = None) -> None:
        """Raises Failure if the login has ended."""
        if self.left(now or datetime.now(UTC)) <= 0:
            raise Failure(f"your login at {self.proxy} has expired, {self.login_again()}")


@dataclass(frozen=True, slots=True)
class UserFiles:
    """The paths of one user's files at one proxy; they stay the same when a login is renewed."""

    folder: Path
    user: str

    @property
    def cas(self) -> Path:
        """The cluster's CAs and the CA that verified the web certificate, PEM."""
        return self.folder / "certs.pem"

    @property
    def key(self) -> Path:
        """The private key, PKCS#8 PEM."""
        return self.folder / self.user

    @property
    def certificate(self) -> Path:
        """The X.509 certificate of the login, PEM."""
        return self.folder / f"{self.user}-x509.pem"

    @property
    def ssh_certificate(self) -> Path:
        """The OpenSSH certificate of the login."""
        return self.folder / f"{self.user}-cert.pub"

    @property
    def known_hosts(self) -> Path:
        """The cluster's SSH host CA, as OpenSSH reads it."""
        return self.folder / "known_hosts"

    def databases(self, cluster: str) -> Path:
        """The folder of a cluster's database certificates."""
        return self.folder / f"{self.user}-db" / file_name(cluster, "cluster")

    def database(self, cluster: str, name: str) -> Path:
        """The certificate for one database, PEM."""
        return self.databases(cluster) / f"{file_name(name, 'database')}-x509.pem"

    def database_key(self, cluster: str, name: str) -> Path:
        """The private key once more, for clients that know what a file holds by how its name ends."""
        return self.databases(cluster) / f"{file_name(name, 'database')}.key"

    def database_bundle(self, cluster: str, name: str) -> Path:
        """Certificate and key for one database in one file, for clients that want them so."""
        return self.databases(cluster) / f"{file_name(name, 'database')}.pem"


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of all profiles: `$TSH_HOME`, by default `~/.tsh`."""

    path: Path

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "Home":
        """The folder that the environment names."""
        named = environment.get("TSH_HOME")
        return cls(Path(named).absolute() if named else user_home(environment) / ".tsh")

    def keys(self, profile: Profile) -> UserFiles:
        """The user's files of a profile."""
        return UserFiles(self.path / "keys" / profile.proxy.host, file_name(profile.user, "user"))

    def load(self, host: str) -> Profile | None:
        """The profile of a proxy host, None if there is none.

        Raises:
            Failure: the file is there and cannot be read.
        """
        path = self._file(host)
        try:
            with path.open("rb") as file:
                content = file.read(MAX_PROFILE)
        except FileNotFoundError:
            return None
        try:
            return _from_json(json.loads(content))
        except (ValueError, KeyError, TypeError, Failure) as error:
            raise Failure(f"{path}: not a profile ({error}); remove it and log in again") from None

    def save(self, profile: Profile) -> None:
        """Writes a profile and makes it the current one."""
        files.make_folder(self.path)
        text = json.dumps(_to_json(profile), indent=2).encode() + b"\n"
        files.replace(self._file(profile.proxy.host), text)
        files.replace(self.path / CURRENT, profile.proxy.host.encode() + b"\n")

    def current(self) -> str | None:
        """The host of the current proxy, None without one."""
        try:
            return (self.path / CURRENT).read_text("utf-8").strip() or None
        except FileNotFoundError:
            return None

    def profiles(self) -> Iterator[Profile]:
        """Every profile, by host."""
        for path in sorted(self.path.glob("*.json")):
            profile = self.load(path.name.removesuffix(".json"))
            if profile is not None:
                yield profile

    def choose(self, proxy: str | None = None, node: str = "") -> Profile:
        """The profile that a command means: of the proxy named, else of the node's cluster, else the current one.

        Args:
            proxy: `HOST[:PORT]` from the command line.
            node: the name of a node, as in `node.example.com` of cluster example.com.

        Raises:
            Failure: not logged in there.
        """
        if proxy is not None:
            address = Address.parse(proxy)
            found = self.load(address.host)
            if found is None:
                raise Failure(f"not logged in at {address}: tsh login --proxy={address}")
            return found
        host = self.current()
        current = self.load(host) if host is not None else None
        if current is None or not within(node, current.cluster):
            current = next((each for each in self.profiles() if within(node, each.cluster)), current)
        if current is None:
            raise Failure("not logged in: tsh login --proxy=HOST:PORT --user=NAME")
        return current

    def forget(self, profile: Profile) -> None:
        """Removes a profile and its user's files; other users' at the same proxy and other proxies stay."""
        keys = self.keys(profile)
        for path in (keys.key, keys.certificate, keys.ssh_certificate):
            files.remove(path)
        for kind in ("app", "db", "kube"):
            shutil.rmtree(keys.folder / f"{keys.user}-{kind}", ignore_errors=True)
        if not any(keys.folder.glob("*-x509.pem")):
            for path in (keys.cas, keys.known_hosts, keys.folder / ".lock"):
                files.remove(path)
            if keys.folder.is_dir() and not any(keys.folder.iterdir()):
                keys.folder.rmdir()
        files.remove(self._file(profile.proxy.host))
        if self.current() == profile.proxy.host:
            rest = next(self.profiles(), None)
            if rest is None:
                files.remove(self.path / CURRENT)
            else:
                files.replace(self.path / CURRENT, rest.proxy.host.encode() + b"\n")

    def _file(self, host: str) -> Path:
        return self.path / f"{host}.json"


def user_home(environment: Mapping[str, str] = os.environ) -> Path:
    """`$HOME`, which is what `~` means everywhere in monoport."""
    return Path(environment.get("HOME") or os.path.expanduser("~")).absolute()


def within(node: str, cluster: str) -> bool:
    """Whether a node's name is written with this cluster's: `node.example.com` in example.com."""
    return node.lower().rstrip(".").endswith("." + cluster)


def _to_json(profile: Profile) -> dict[str, Any]:
    return {
        "proxy": str(profile.proxy),
        "user": profile.user,
        "cluster": profile.cluster,
        "server_name": profile.server_name,
        "expires": profile.expires.astimezone(UTC).isoformat(),
        "trust": profile.trust,
        "tls_routing": profile.tls_routing,
        "plain_ssh": str(profile.plain_ssh) if profile.plain_ssh else None,
        "database_ports": dict(profile.database_ports),
        "logins": list(profile.logins),
        "cas": dict(profile.cas),
    }


def _from_json(value: dict[str, Any]) -> Profile:
    cas = value["cas"]
    if not all(isinstance(pem, str) for kind in ("host", "ssh_host") for pem in cas[kind]):
        raise ValueError("its CAs are malformed")
    return Profile(
        proxy=Address.parse(value["proxy"]),
        user=file_name(value["user"], "user"),
        cluster=file_name(value["cluster"], "cluster"),
        server_name=str(value["server_name"]),
        expires=datetime.fromisoformat(value["expires"]),
        trust=str(value["trust"]),
        tls_routing=value["tls_routing"] is True,
        plain_ssh=Address.parse(value["plain_ssh"]) if value.get("plain_ssh") else None,
        database_ports={str(key): int(port) for key, port in value.get("database_ports", {}).items()},
        logins=tuple(str(login) for login in value["logins"]),
        cas=cas,
    )
