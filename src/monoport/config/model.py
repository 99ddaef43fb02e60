"""The keys of a configuration file, section by section, with what each means.

Belongs here: one frozen model per section; a description on every key, from which docs/configuration.md is made.
Does not belong here: reading files and defaults that depend on other keys (load.py), how one value is read (values.py).
"""

import socket
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationInfo, field_validator

from monoport import protocols
from monoport.config import values
from monoport.config.section import Section, Service
from monoport.config.source import ConfigError, Source
from monoport.config.values import Address, Shown, address, one_or_many, problem, show
from monoport.protocols.description import Description
from monoport.wire import names

# The table of ports of rfd 39.
WEB_PORT, SSH_PROXY_PORT, TUNNEL_PORT, AUTH_PORT = 3080, 3023, 3024, 3025
MYSQL_PORT = 3036
POSTGRES_PORT, MONGO_PORT = 5432, 27017  # their own; rfd 39 names none

_ADDRESS = Shown("host:port")


class Log(Section):
    """How the daemon writes its log, on standard error."""

    severity: Literal["debug", "info", "warn", "error"] = Field(
        default="info",
        description="the least severe lines to write",
    )
    format: Literal["text", "json"] = Field(
        default="text",
        description="text for people, json for machines; one line an event",
    )


class Audit(Section):
    """What happens while audit events cannot be kept, as on a full disk."""

    on_failure: Literal["refuse", "continue"] = Field(
        default="refuse",
        description="refuse: nothing new starts until they can be kept; continue: it does, unrecorded for as long as "
        "memory does not hold its events until then",
    )


def _token(value: Any, info: ValidationInfo) -> str:
    if not isinstance(value, str) or not value.strip():
        raise problem(
            f"{show(value)} is not a token; expected one of tctl tokens add, or the path of a file that holds it"
        )
    if not value.startswith(("/", "~/")):
        return value.strip()
    path = Path(value).expanduser()
    token = values.read_file(path).decode("ascii", "replace").strip()
    if not token or not token.isprintable() or len(token.split()) != 1:
        raise problem(f"{path} does not hold a token; expected one line, as tctl tokens add printed it")
    return token


class JoinParams(Section):
    """How this host joins its cluster the first time; afterwards it has a certificate and needs none of this."""

    method: Literal["token"] = Field(default="token", description="how the host proves itself")
    token_name: Annotated[str, BeforeValidator(_token), Shown("token or path")] = Field(
        default="",
        repr=False,
        description="a token of `tctl tokens add`, or the absolute path of a file that holds one",
    )


class Storage(Section):
    """Where the auth service keeps its state."""

    type: Literal["sqlite"] = Field(default="sqlite", description="sqlite: the file `auth.db` in `data_dir`")

    @field_validator("type", mode="before")
    @classmethod
    def _later_types(cls, value: Any) -> Any:
        if value in ("postgresql", "postgres", "etcd"):
            values.refuse_later(f'storage type "{value}"')
        return value


def default_nodename() -> str:
    """This machine's name as a resource name: its first label in lower case."""
    label = socket.gethostname().split(".")[0].lower()
    label = "".join(c if c.isascii() and c.isalnum() else "-" for c in label).strip("-")[:63].strip("-")
    return label if label and label not in values.RESERVED else "node"


class Teleport(Section):
    """The host itself: its name, its folder, the cluster that it belongs to."""

    nodename: values.ResourceName = Field(
        default_factory=default_nodename,
        description="this host's name in the cluster (default: the machine's host name)",
    )
    data_dir: values.AnyPath = Field(
        default=Path("/var/lib/monoport"),
        description="folder of state, keys and certificates; one daemon uses it at a time",
    )
    auth_server: Annotated[Address | None, address(AUTH_PORT, "auth.example.com:3025"), _ADDRESS] = Field(
        default=None,
        description="the auth service, reached directly and not through proxy_server; without that key this host joins "
        "there too (default port 3025)",
    )
    proxy_server: Annotated[Address | None, address(WEB_PORT, "example.com:3080"), _ADDRESS] = Field(
        default=None, description="a proxy of the cluster, through which this host joins and serves (default port 3080)"
    )
    ca_pin: values.Pins = Field(
        default=(), description="pin of the cluster's CA, as `tctl status` prints it; checked on joining"
    )
    join_params: JoinParams = Field(default_factory=JoinParams, description="how this host joins")
    dial_back: values.Switch = Field(
        default=True,
        description="agents open a connection of its own for each session when the proxy asks for it; "
        "otherwise, and where that fails, sessions share the tunnel's",
    )
    protocols: values.Names = Field(
        default=(),
        description="database protocols of other packages, by the names of their entry points `monoport.protocols`: "
        "their code runs in this daemon; wherever one is used, proxies, agents and the auth service name it",
    )
    log: Log = Field(default_factory=Log, description="the daemon's log")
    audit: Audit = Field(default_factory=Audit, description="what happens where the audit log cannot be written")
    storage: Storage = Field(default_factory=Storage, description="where the auth service keeps its state")
    diag_addr: Annotated[Address | None, address(None, "127.0.0.1:3000", listens=True), _ADDRESS] = Field(
        default=None,
        description="serves `/metrics`, `/healthz` and `/readyz` without authentication: "
        "loopback or a management network (default: nowhere)",
    )


class Authentication(Section):
    """How users sign in."""

    type: Literal["local"] = Field(default="local", description="local: users of `tctl users add`, with passwords")
    second_factor: Literal["off"] = Field(default="off", description="what is asked beside the password")

    @field_validator("type", "second_factor", mode="before")
    @classmethod
    def _later_values(cls, value: Any, info: ValidationInfo) -> Any:
        if value is False:
            return "off"
        if value in ("oidc", "saml", "github", "otp", "webauthn", "on", "optional"):
            values.refuse_later(f'authentication {info.field_name} "{value}"')
        return value


class AuthService(Service):
    """Users, roles and certificate authorities.

    On where `proxy_service` is on and neither `auth_server` nor `proxy_server` is named; elsewhere off unless enabled.
    """

    derived: ClassVar = True
    enabled: values.Switch = Field(default=False, description="run the auth service (default: see above)")
    cluster_name: values.HostName = Field(
        default="", description="the cluster's name, which cannot change later (default: the first public host)"
    )
    listen_addr: Annotated[Address | None, address(AUTH_PORT, "0.0.0.0:3025", listens=True), _ADDRESS] = Field(
        default=None,
        description="one more port, for the auth API and for proxies that join by `auth_server` (default port 3025; "
        "without the key: through the proxy only)",
    )
    proxy_listener_mode: Literal["multiplex"] = Field(
        default="multiplex",
        description="multiplex: everything on one port",
    )
    authentication: Authentication = Field(default_factory=Authentication, description="how users sign in")
    session_recording: Literal["node"] = Field(
        default="node", description="node: nodes record terminals, where options.record_session of a role says so"
    )

    @field_validator("proxy_listener_mode", mode="before")
    @classmethod
    def _later_mode(cls, value: Any) -> Any:
        if value == "separate":
            values.refuse_later('proxy_listener_mode "separate"')
        return value


class KeyPair(Section):
    """A certificate for browsers and its key."""

    key_file: values.ReadableFile = Field(description="PEM file of the private key")
    cert_file: values.ReadableFile = Field(description="PEM file of the certificate, its intermediates behind it")


class Limits(Section):
    """How many connections the port takes at once."""

    connections: int = Field(default=8192, ge=1, le=1_000_000, description="in all")
    per_source: int | None = Field(
        default=None, ge=1, le=1_000_000, description="from one address (default 512, and any number from loopback)"
    )


class ProxyProtocol(Section):
    """Load balancers in front of the port, which say in a PROXY header (version 1 or 2) for which client they connect.

    The source address in limits, logs and the audit log is then the client's. Whoever connects from these networks can
    claim any address: name the balancers alone. They may connect without a header, too, as health checks do.
    """

    networks: values.Networks = Field(
        default=(), description="from where a PROXY header is believed; from elsewhere it is refused"
    )


class ProxyService(Service):
    """The front door: one TLS port for everything."""

    later: ClassVar = frozenset({"kube_listen_addr"})

    enabled: values.Switch = Field(default=False, description="run the proxy")
    web_listen_addr: Annotated[Address, address(WEB_PORT, "0.0.0.0:3080", listens=True), _ADDRESS] = Field(
        default=Address("0.0.0.0", WEB_PORT),  # noqa: S104 - a front door is open to the network
        description="the one port (default port 3080)",
    )
    public_addr: Annotated[
        tuple[Annotated[Address, address(0, "example.com:443")], ...],
        one_or_many,
        Field(strict=False),
        Shown("host:port, or a list"),
    ] = Field(
        default=(),
        description="how clients reach it, the first is canonical (default: nodename, with web_listen_addr's port)",
    )
    https_keypairs: Annotated[tuple[KeyPair, ...], Field(strict=False), Shown("list of key pairs")] = Field(
        default=(),
        description="certificates for browsers, reread when the files change (default: one of the cluster's own CA)",
    )
    listen_addr: Annotated[Address | None, address(SSH_PROXY_PORT, "0.0.0.0:3023", listens=True), _ADDRESS] = Field(
        default=None, description="one more port, for SSH clients, which need no TLS (default port 3023)"
    )
    tunnel_listen_addr: Annotated[Address | None, address(TUNNEL_PORT, "0.0.0.0:3024", listens=True), _ADDRESS] = Field(
        default=None, description="one more port, for agents; without TLS it lets in nobody else (default port 3024)"
    )
    postgres_listen_addr: Annotated[Address | None, address(POSTGRES_PORT, "0.0.0.0:5432", listens=True), _ADDRESS] = (
        Field(default=None, description="one more port, for PostgreSQL clients (default port 5432)")
    )
    mysql_listen_addr: Annotated[Address | None, address(MYSQL_PORT, "0.0.0.0:3036", listens=True), _ADDRESS] = Field(
        default=None, description="one more port, for MySQL clients, who are greeted at once (default port 3036)"
    )
    mongo_listen_addr: Annotated[Address | None, address(MONGO_PORT, "0.0.0.0:27017", listens=True), _ADDRESS] = Field(
        default=None, description="one more port, for MongoDB clients (default port 27017)"
    )
    mysql_on_silence: values.Silence | None = Field(
        default=None,
        description="the one port speaks MySQL to clients that have said nothing for so long, 100ms to 4s: every MySQL "
        "client that comes there without a local proxy waits that long (default: never)",
    )
    proxy_protocol: ProxyProtocol = Field(default_factory=ProxyProtocol, description="load balancers in front")
    limits: Limits = Field(default_factory=Limits, description="how many connections at once")

    @field_validator("proxy_protocol", mode="before")
    @classmethod
    def _no_balancers(cls, value: Any) -> Any:
        return {} if not isinstance(value, dict) and values.says_off(value) else value

    def on_silence(self) -> dict[str, float]:
        """Which protocol the one port speaks to clients that say nothing, by name, and after how many seconds."""
        keys = {one.name: one.silence_key for one in protocols.TABLE.values() if one.silence_key}
        return {name: seconds for name, key in keys.items() if (seconds := getattr(self, key)) is not None}


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class Openssh(Section):
    """The host's own sshd serves the node's sessions; the agent relays to it and answers whom it may let in.

    `openssh: yes` is the short form. The agent writes what sshd needs into `data_dir/openssh`; `tctl auth export
    --type=openssh` prints the steps.
    """

    enabled: values.Switch = Field(default=False, description="relay to sshd instead of serving sessions")
    sshd_addr: Annotated[Address, address(22, "127.0.0.1:22"), _ADDRESS] = Field(
        default=Address("127.0.0.1", 22),
        description="where sshd listens, on loopback; nothing else is ever dialled (default port 22)",
    )
    host_key: values.AnyPath = Field(
        default=Path("/etc/ssh/ssh_host_ed25519_key.pub"),
        description="file of sshd's public host key, for which the cluster's CA signs a certificate",
    )

    @field_validator("sshd_addr")
    @classmethod
    def _on_this_host(cls, value: Address) -> Address:
        if value.host != "localhost" and not _loopback(value.host):
            raise problem(f"{value.host} is not on loopback; expected the host's own sshd, as in 127.0.0.1:22")
        return value


class SshService(Service):
    """This host as an SSH node, reached through the reverse tunnel."""

    later: ClassVar = frozenset({"listen_addr"})

    enabled: values.Switch = Field(default=False, description="run the SSH node")
    labels: values.Labels = Field(default={}, description="labels of the node, which roles select by")
    openssh: Openssh = Field(default_factory=Openssh, description="the host's own sshd serves the sessions")

    @field_validator("openssh", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"enabled": True, **value} if isinstance(value, dict) else {"enabled": value}


class DatabaseTls(Section):
    """How the agent verifies a database server."""

    mode: Literal["verify-full", "verify-ca", "insecure"] = Field(
        default="verify-full",
        description="verify-full: CA and server name; verify-ca: the CA alone; insecure: nothing, anyone may answer",
    )
    ca_cert_file: values.ReadableFile | None = Field(
        default=None,
        description="PEM file of the CA that signed the server's certificate (default: the cluster's database CA)",
    )
    server_name: values.HostName | None = Field(
        default=None, description="the name in the server's certificate (default: the host of the uri)"
    )


def _protocol(value: Any, info: ValidationInfo) -> str:
    table = (info.context or {}).get("protocols", protocols.TABLE)
    known = sorted(table)
    if isinstance(value, str) and (found := protocols.named(value, table)) is not None:
        return found.name
    if not isinstance(value, str):
        raise problem(f"{show(value)} is not a protocol; expected one of {', '.join(known)}")
    raise problem(f"{show(value)} is not a protocol; {values.did_you_mean(value, known)}")


class Database(Section):
    """One database behind this agent."""

    name: values.ResourceName = Field(description="its name in the cluster")
    protocol: Annotated[str, BeforeValidator(_protocol), Shown("protocol")] = Field(
        description=f"what it speaks: {', '.join(f'`{name}`' for name in sorted(protocols.TABLE))}, "
        "or one that `teleport.protocols` names"
    )
    uri: Annotated[Address, address(0, "localhost:5432"), _ADDRESS] = Field(
        description="where the agent reaches it (default port: the protocol's)"
    )
    static_labels: values.Labels = Field(default={}, description="labels of the database, which roles select by")
    password_file: values.SecretFile | None = Field(
        default=None,
        description="for a server that cannot check certificates: lines `user:password`, readable by its owner alone, "
        "read anew for every session; users never see it (default: the server knows users by certificate)",
    )
    server_version: values.Version = Field(
        default="",
        description="what the server calls itself, until the agent has asked it; protocols whose server speaks first "
        "tell their clients (default: one of the protocol's own)",
    )
    tls: DatabaseTls = Field(default_factory=DatabaseTls, description="how the agent verifies the server")


class DbService(Service):
    """The agent beside databases."""

    enabled: values.Switch = Field(default=False, description="run the database agent")
    databases: Annotated[tuple[Database, ...], Field(strict=False), Shown("list of databases")] = Field(
        default=(), description="the databases that this agent reaches; it dials no others"
    )


class Config(Section):
    """A whole configuration, defaults filled in: what `config.load` returns."""

    later: ClassVar = frozenset({"app_service", "kubernetes_service"})

    version: Literal["v2", "v3"] = Field(description="form of the file: v2 or v3, which mean the same so far")
    teleport: Teleport = Field(default_factory=Teleport, description="the host itself")
    auth_service: AuthService = Field(default_factory=AuthService, description="users, roles, certificate authorities")
    proxy_service: ProxyService = Field(default_factory=ProxyService, description="the front door")
    ssh_service: SshService = Field(default_factory=SshService, description="this host as an SSH node")
    db_service: DbService = Field(default_factory=DbService, description="the agent beside databases")
    _source: Source = PrivateAttr(default_factory=lambda: Source("configuration", {}))

    @field_validator("version", mode="before")
    @classmethod
    def _later_version(cls, value: Any) -> Any:
        if value == "v1":
            values.refuse_later("version: v1", "v2 or v3")
        return value

    def read_from(self, source: Source) -> "Config":
        """Remember where each key was written."""
        self._source = source
        return self

    def error(self, section: str, key: str, message: str) -> ConfigError:
        """Make the error of a key whose value cannot be used, found only when it was tried; it names the place."""
        return self._source.error((section, key), f"{section}.{key}: {message}")

    @property
    def cluster_name(self) -> str:
        """The cluster's name where the auth service runs here, else "": the certificate of this host says it."""
        return self.auth_service.cluster_name

    @property
    def protocols(self) -> Mapping[str, Description]:
        """Every database protocol of this daemon: ours, and those of others that the configuration names."""
        return protocols.table(self.teleport.protocols)

    @property
    def public_addrs(self) -> tuple[Address, ...]:
        """Every public address of the proxy, the canonical one first."""
        return self.proxy_service.public_addr

    @property
    def public_hosts(self) -> tuple[str, ...]:
        """The host of every public address in canonical form, each once, the canonical one first."""
        return tuple(dict.fromkeys(names.host(str(address)) for address in self.public_addrs))
