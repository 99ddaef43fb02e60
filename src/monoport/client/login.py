"""Logging in and out: whom to trust, proving who we are, and writing down what comes back.

Belongs here: the order of the steps; the password leaves only on a verified connection. Does not belong here: asking
for it, ssh's own files (sshsetup.py), the layout of TSH_HOME (profile.py).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509

from monoport import __version__, protocols
from monoport.auth.authorities import AuthorityError, TrustedCas
from monoport.auth.authorities import pin as pin_of
from monoport.auth.keys import KeyPair, generate
from monoport.client import files, keys
from monoport.client.busy import Busy, quiet
from monoport.client.chain import anchor
from monoport.client.front import BOOTSTRAP, HTTP_ALPN, NotTrusted, blind_context, cluster_context, dial, web_context
from monoport.client.knownhosts import known_hosts_line
from monoport.client.names import Address, file_name
from monoport.client.profile import Home, Profile
from monoport.client.webapi import WebApi
from monoport.errors import Failure
from monoport.net.tls import TlsStream

PIN = re.compile(r"sha256:[0-9a-f]{64}")
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})  # every proxy's certificate carries them
CLOCK_SKEW = timedelta(minutes=1)  # a certificate that ends sooner than this would be useless before it is used


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for; `ttl` in seconds, 0 for the role's own."""

    proxy: Address
    user: str
    ca_pin: str = ""
    insecure: bool = False
    ttl: int = 0


@dataclass(frozen=True, slots=True)
class Verified:
    """A connection on which a password may travel, how it was verified, and by which CA."""

    stream: TlsStream
    name: str
    trust: str
    anchor: str = ""


Warn = Callable[[str], None]


async def login(home: Home, request: Request, password: Callable[[], str], warn: Warn, busy: Busy = quiet) -> Profile:
    """Logs in, writes the user's files, and makes this profile the current one.

    Args:
        home: where to write.
        request: where, and who.
        password: called once, when the server has been verified.
        warn: called with one line for each thing that the user should know.
        busy: announces what takes a while.

    Raises:
        Failure: not trusted, refused, or an answer that makes no sense.
    """
    file_name(request.user, "user")
    known = home.load(request.proxy.host)
    with busy(f"connecting to {request.proxy}"):
        verified = await _verify(request, known)
    async with verified.stream:
        api = WebApi(verified.stream, verified.name)
        ping = await api.get("/webapi/ping")
        _compare_versions(ping, warn)
        pair = generate()
        body: dict[str, Any] = {
            "user": request.user,
            "password": password(),
            "public_key": pair.public,
            "ssh_public_key": pair.ssh_public,
        }
        if request.ttl:
            body["ttl"] = request.ttl
        with busy(f"logging in at {request.proxy}"):
            answer = await api.post("/webapi/login", body)
    grant = _read_grant(answer, pair, request.user)
    profile = _profile(request, verified, ping, grant)
    _write(home, profile, pair, grant, verified.anchor)
    return profile


async def _verify(request: Request, known: Profile | None) -> Verified:
    if request.ca_pin:
        return await _by_pin(request.proxy, request.ca_pin)
    if request.insecure:
        stream = await dial(request.proxy, blind_context(), request.proxy.host)
        return Verified(stream, request.proxy.host, "insecure", anchor(stream, verified=False))
    if known is not None and known.trust == "pin" and known.proxy == request.proxy:
        return await _by_known_ca(request.proxy, known)
    try:
        stream = await dial(request.proxy, web_context(), request.proxy.host)
    except NotTrusted as error:
        raise Failure(f"{error}; name the cluster's CA with --ca-pin=sha256:... (tctl status shows it)") from None
    return Verified(stream, request.proxy.host, "roots", anchor(stream, verified=True))


async def _by_pin(proxy: Address, pin: str) -> Verified:
    if not PIN.fullmatch(pin.lower()):
        raise Failure(f"{pin!r} is not a CA pin: sha256: and 64 hexadecimal digits, as tctl status shows it")
    async with await dial(proxy, blind_context(), BOOTSTRAP) as stream:
        answer = await WebApi(stream, BOOTSTRAP).get("/webapi/cas")
    try:
        offered = TrustedCas.from_json(answer).host
    except AuthorityError as error:
        raise Failure(f"{proxy} did not answer with a cluster's CAs: {error}") from None
    pinned = tuple(pem for pem in offered if pin_of(pem) == pin.lower())
    if not pinned:
        seen = ", ".join(pin_of(pem) for pem in offered) or "none"
        raise Failure(f"the cluster at {proxy} has another CA than the pin says: expected {pin.lower()}, got {seen}")
    return await _by_bootstrap(proxy, pinned, "pin")


async def _by_known_ca(proxy: Address, known: Profile) -> Verified:
    try:
        return await _by_bootstrap(proxy, known.host_cas, known.trust)
    except NotTrusted:
        raise Failure(
            f"{proxy} no longer shows a certificate of {known.cluster}'s CA; if the cluster was set up anew, "
            "log in with --ca-pin"
        ) from None


async def _by_bootstrap(proxy: Address, host_cas: tuple[str, ...], trust: str) -> Verified:
    return Verified(await dial(proxy, cluster_context(host_cas, HTTP_ALPN), BOOTSTRAP), BOOTSTRAP, trust)


@dataclass(frozen=True, slots=True)
class Grant:
    """What the server gave: certificates, CAs, and what they are good for."""

    certificate: str
    ssh_certificate: str
    cas: TrustedCas
    cluster: str
    logins: tuple[str, ...]
    expires: datetime


def _read_grant(answer: dict[str, Any], pair: KeyPair, user: str) -> Grant:
    try:
        certificate, ssh_certificate = str(answer["certificate"]), str(answer["ssh_certificate"])
        parsed = x509.load_pem_x509_certificate(certificate.encode())
        cas = TrustedCas.from_json(answer["cas"])
        cluster = file_name(str(answer["cluster"]), "cluster")
        if cas.cluster != cluster or not cas.host or not cas.ssh_host:
            raise ValueError("its CAs are not the cluster's")
        grant = Grant(
            certificate,
            ssh_certificate,
            cas,
            cluster,
            tuple(str(login) for login in answer["logins"]),
            parsed.not_valid_after_utc,
        )
        if not keys.owns(pair, certificate) or not keys.owns_ssh(pair, ssh_certificate):
            raise ValueError("a certificate is for another key")
        if answer["user"] != user:
            raise ValueError(f"it is for user {answer['user']!r}")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise Failure(f"the proxy's answer to the login makes no sense: {error!r}") from None
    if grant.expires < datetime.now(UTC) + CLOCK_SKEW:
        raise Failure(
            f"the new certificate ends at {grant.expires:%Y-%m-%d %H:%M:%S} UTC, within a minute: "
            "check this machine's clock, --ttl and the max_session_ttl of your roles"
        )
    return grant


def _profile(request: Request, verified: Verified, ping: dict[str, Any], grant: Grant) -> Profile:
    proxy = _object(ping.get("proxy"))
    ssh = _object(proxy.get("ssh"))
    public = _address(ssh.get("public_addr"))
    typed = request.proxy.host
    known = verified.trust == "roots" or public is None or typed in LOCAL_NAMES | {public.host}
    plain = _address(ssh.get("listen_addr"))
    databases, keys_of = _object(proxy.get("db")), {one.listen_key for one in protocols.TABLE.values()}
    return Profile(
        proxy=request.proxy,
        user=request.user,
        cluster=grant.cluster,
        server_name=typed if known or public is None else public.host,
        expires=grant.expires,
        logins=grant.logins,
        cas=grant.cas.to_json(),
        trust=verified.trust,
        tls_routing=proxy.get("tls_routing_enabled") is True,
        plain_ssh=Address(typed, plain.port) if plain else None,
        database_ports={key: found.port for key in keys_of if (found := _address(databases.get(key)))},
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _address(value: Any) -> Address | None:
    if isinstance(value, list):
        value = value[0] if value else None
    try:
        return Address.parse(value) if isinstance(value, str) and value else None
    except Failure:
        return None


def _compare_versions(ping: dict[str, Any], warn: Warn) -> None:
    server, least = ping.get("server_version"), ping.get("min_client_version")
    if isinstance(least, str) and _version(__version__) < _version(least):
        warn(f"this tsh is version {__version__}, the cluster asks for {least} or later: please update tsh")
    elif isinstance(server, str) and _version(server)[:1] != _version(__version__)[:1]:
        warn(f"this tsh is version {__version__} and the cluster is {server}: some things may not work")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def _write(home: Home, profile: Profile, pair: KeyPair, grant: Grant, web_ca: str) -> None:
    paths = home.keys(profile)
    cas = [pem.strip() for pem in profile.host_cas]
    if web_ca and web_ca.strip() not in cas:
        cas.append(web_ca.strip())
    known_hosts = "".join(known_hosts_line(line, "*") for line in profile.ssh_host_cas)
    with files.locked(paths.folder):
        files.replace(paths.key, pair.private.encode())
        files.replace(paths.certificate, grant.certificate.encode())
        files.replace(paths.ssh_certificate, grant.ssh_certificate.strip().encode() + b"\n")
        files.replace(paths.cas, ("\n".join(cas) + "\n").encode())
        files.replace(paths.known_hosts, known_hosts.encode())
        home.save(profile)
