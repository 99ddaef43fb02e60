"""Databases from the user's side: which there are, and certificates for one of them.

Belongs here: reissuing with a destination, and its files. Does not belong here: carrying bytes (localproxy.py), opening
a client program (shell.py), any one protocol: all that varies comes from its description.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

from monoport.access.identity import Destination, Identity, from_x509
from monoport.access.resources import Database
from monoport.auth.authorities import TrustedCas
from monoport.auth.client import AuthClient, AuthError
from monoport.client import files
from monoport.client.authapi import auth_client
from monoport.client.front import Credentials
from monoport.client.keys import load, owns
from monoport.client.names import file_name
from monoport.client.profile import Home, Profile
from monoport.errors import Failure
from monoport.protocols import named, table
from monoport.protocols.description import Description

OTHERS = "TSH_PROTOCOLS"  # of the environment: protocols of other packages, joined with commas
SPARE = timedelta(seconds=30)  # a certificate with less than this left is renewed before it is used


@dataclass(frozen=True, slots=True)
class Login:
    """A database login that is on disk."""

    destination: Destination
    expires: datetime
    credentials: Credentials

    def good(self, now: datetime) -> bool:
        """Whether a connection that begins now can use it."""
        return self.expires - now > SPARE


async def databases(home: Home, profile: Profile) -> list[Database]:
    """The databases that the user may see, each name once, in order; of several agents one whose server answers."""
    async with auth_client(home, profile) as client:
        several = [each for each in await client.list("db") if isinstance(each, Database)]
    found = {each.name: each for each in sorted(several, key=lambda each: each.spec.state == "up")}
    return [found[name] for name in sorted(found)]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A database of the cluster, and whom to be in it: empty for the only one allowed, or, of several, any."""

    name: str
    user: str = ""
    database: str = ""

    def met_by(self, found: Login) -> bool:
        """Whether a login is for this."""
        one = found.destination
        return self.name == one.name and self.user in ("", one.user) and self.database in ("", one.database)


async def login(home: Home, profile: Profile, wanted: Wanted) -> Login:
    """Gets a certificate for one database and writes it beside the login's files.

    Args:
        home: where to write.
        profile: the login.
        wanted: which database, and whom to be in it.

    Raises:
        Failure: unknown or refused.
    """
    file_name(wanted.name, "database")
    folder = home.keys(profile).databases(profile.cluster)
    async with auth_client(home, profile) as client:
        destination = await _destination(client, wanted, identity(home, profile))
        return await _reissue(home, profile, client, destination, folder)


async def borrow(home: Home, profile: Profile, folder: Path, wanted: Wanted) -> Login:
    """The login on disk if it is for what is wanted, else a new one in the folder.

    Args:
        folder: where a new one goes, so that it does not replace the one on disk.

    Raises:
        Failure: unknown or refused.
    """
    found = find(home, profile, wanted.name)
    if found is not None and wanted.met_by(found):
        return found
    async with auth_client(home, profile) as client:
        destination = await _destination(client, wanted, identity(home, profile))
        made = await _reissue(home, profile, client, destination, folder)
    # One file for both: what is in it belongs together, even after a new login has made a new key.
    bundle = made.credentials.certificate.with_name(f"{destination.name}.pem")
    return Login(destination, made.expires, Credentials(bundle, bundle))


async def current(home: Home, profile: Profile, folder: Path, wanted: Wanted) -> Login:
    """The login on disk if it is for what is wanted; in its place a new one if there is none that is good.

    One on disk for somebody else stays as it is, and a new one goes into the folder.
    """
    if find(home, profile, wanted.name) is None:
        return await login(home, profile, wanted)
    return await borrow(home, profile, folder, wanted)


async def reissue(home: Home, profile: Profile, known: Login) -> Login:
    """Gets a new certificate for the same, under the same paths. Raises Failure: refused, or the cluster is away."""
    async with auth_client(home, profile) as client:
        made = await _reissue(home, profile, client, known.destination, known.credentials.certificate.parent)
    return Login(known.destination, made.expires, known.credentials)


async def listing(home: Home, profile: Profile) -> list[dict[str, Any]]:
    """The databases that the user may use, as rows of `tsh db ls`."""
    now = datetime.now(UTC)
    here = {each.destination.name: each.destination for each in logins(home, profile) if each.good(now)}
    return [
        {
            "name": each.name,
            "protocol": each.spec.protocol,
            "state": each.spec.state,
            "problem": each.spec.problem,
            "labels": dict(each.metadata.labels),
            "login": describe(here[each.name]) if each.name in here else "",
        }
        for each in await databases(home, profile)
    ]


def state_of(database: Database) -> str:
    """What its agent says of the real server, for people: "up", "down: WHY", "" if it has not looked yet."""
    spec = database.spec
    if spec.state == "unknown":
        return ""
    return f"{spec.state}: {spec.problem}" if spec.problem else spec.state


def describe(destination: Destination) -> str:
    """Whom a certificate makes the user in its database, for people."""
    user = destination.user or "any user"
    return f"{user} in {destination.database}" if destination.database else user


async def renew(home: Home, profile: Profile, warn: Callable[[str], None]) -> None:
    """After a new login: new certificates for every database that was logged in to, under the same paths.

    One that is refused now is removed, and said so.
    """
    folder = home.keys(profile).databases(profile.cluster)
    names = [path.name.removesuffix("-x509.pem") for path in sorted(folder.glob("*-x509.pem"))]
    if not names:
        return
    known = {each.destination.name: each.destination for each in logins(home, profile)}
    async with auth_client(home, profile) as client:
        for name in names:
            if name not in known:
                logout(home, profile, name)  # of another cluster that had this name, or not ours at all
                continue
            try:
                await _reissue(home, profile, client, known[name], folder)
            except AuthError as error:
                logout(home, profile, name)
                warn(f"you are no longer logged in to database {name}: {error}")


def find(home: Home, profile: Profile, name: str, now: datetime | None = None) -> Login | None:
    """The login for one database, if it is on disk and still good."""
    at = now or datetime.now(UTC)
    return next((each for each in logins(home, profile) if each.destination.name == name and each.good(at)), None)


def logins(home: Home, profile: Profile) -> list[Login]:
    """The database logins on disk, ended ones too; files that are none of this cluster's are left out."""
    paths = home.keys(profile)
    found = []
    for path in sorted(paths.databases(profile.cluster).glob("*-x509.pem")):
        one = read_login(profile, Credentials(path, paths.key))
        if one is not None and one.destination.name == path.name.removesuffix("-x509.pem"):
            found.append(one)
    return found


def read_login(profile: Profile, credentials: Credentials) -> Login | None:
    """The database login in these files, ended or not; None if they hold none of this cluster's."""
    try:
        identity = read_identity(credentials.certificate.read_bytes(), TrustedCas.from_json(profile.cas))
    except (OSError, ValueError, Failure):
        return None
    if identity.destination is None or identity.destination.kind != "db":
        return None
    return Login(identity.destination, identity.expires, credentials)


def logout(home: Home, profile: Profile, name: str | None = None) -> list[str]:
    """Removes the certificates for one database, or for all; returns the names.

    Raises:
        Failure: not logged in to the one named.
    """
    paths = home.keys(profile)
    here = [path.name.removesuffix("-x509.pem") for path in paths.databases(profile.cluster).glob("*-x509.pem")]
    chosen = sorted(here) if name is None else [each for each in here if each == name]
    if name is not None and not chosen:
        raise Failure(f"not logged in to a database {name!r}")
    for each in chosen:
        files.remove(paths.database(profile.cluster, each))
        files.remove(paths.database_bundle(profile.cluster, each))
        files.remove(paths.database_key(profile.cluster, each))
    return chosen


def read_identity(pem: bytes, cas: TrustedCas) -> Identity:
    """The identity in a certificate of the user's own, ended or not.

    Raises:
        Failure, ValueError: it is not one of this cluster's.
    """
    certificate = x509.load_pem_x509_certificate(pem)
    return from_x509(certificate, cas, certificate.not_valid_before_utc)


def _known(environment: Mapping[str, str] = os.environ) -> Mapping[str, Description]:
    """Ours, and those of others that the user names; raises Failure. What a cluster says never loads anything."""
    others = tuple(name for name in environment.get(OTHERS, "").split(",") if name)
    try:
        return table(others)
    except ValueError as error:
        raise Failure(f"{OTHERS}: {error}") from None


def protocol_of(destination: Destination) -> Description:
    """The description of a database's protocol; raises Failure if this tsh does not know it."""
    found = named(destination.protocol, _known())
    if found is None:
        raise Failure(f"this tsh does not know the protocol {destination.protocol!r} of database {destination.name}")
    return found


def title_of(database: Database) -> str:
    """The name of a database's protocol for people; as the cluster says it, if this tsh does not know it."""
    found = named(database.spec.protocol, _known())
    return found.title if found is not None else database.spec.protocol


def identity(home: Home, profile: Profile) -> Identity:
    """Who the login says the user is; raises Failure if its files are gone."""
    try:
        return read_identity(home.keys(profile).certificate.read_bytes(), TrustedCas.from_json(profile.cas))
    except (OSError, ValueError):
        raise Failure(f"the files of your login are missing, {profile.login_again()}") from None


async def _destination(client: AuthClient, wanted: Wanted, user: Identity) -> Destination:
    found = [each for each in await client.list("db") if isinstance(each, Database) and each.name == wanted.name]
    if not found:
        raise Failure(f"there is no database {wanted.name!r} in {user.cluster} that you may use: tsh db ls")
    return Destination(
        "db",
        wanted.name,
        found[0].spec.protocol,
        wanted.user or _only(user.traits.get("db_users", ())),
        wanted.database or _only(user.traits.get("db_names", ())),
    )


def _only(values: tuple[str, ...]) -> str:
    return values[0] if len(values) == 1 and values[0] != "*" else ""


async def _reissue(home: Home, profile: Profile, client: AuthClient, destination: Destination, folder: Path) -> Login:
    paths = home.keys(profile)
    pair = load(paths.key.read_text("ascii"))
    answer = await client.reissue(destination, None, pair.public)
    if not owns(pair, answer.certificate):
        raise Failure("the auth service answered with a certificate for another key")
    name = file_name(destination.name, "database")
    certificate = folder / f"{name}-x509.pem"
    with files.locked(paths.folder):
        files.make_folder(folder)
        files.replace(certificate, answer.certificate.encode())
        files.replace(folder / f"{name}.pem", answer.certificate.encode() + pair.private.encode())
        files.replace(folder / f"{name}.key", pair.private.encode())
    return Login(destination, answer.expires, Credentials(certificate, paths.key))
