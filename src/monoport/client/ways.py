"""How a connection to a database is written down: connection strings, variables, sections of settings files.

Belongs here: filling in what a protocol's description has left open, and replacing one section of a user's file.
Does not belong here: the forms themselves (`protocols/<name>.py`).
"""

import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from monoport.client import databases, files
from monoport.client.filling import fill, needed, optional
from monoport.client.front import Credentials
from monoport.client.names import Address
from monoport.client.profile import Home, Profile, user_home
from monoport.errors import Failure
from monoport.protocols import TABLE
from monoport.protocols.description import Description, Form, Settings

MAX_FILE = 1 << 20  # bytes of a settings file that is read and written again; people's have a few KiB
_SERVICE = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)  # stands between brackets and behind `service=` alike
_MARK = "# by tsh db config: "  # begins the first line of a section that is ours


_NAMED = ("named_certificate", "named_key")
# Files that a login may not have: a Form that needs one of these has nothing to say then.
_MAY_LACK = frozenset({"key", *_NAMED, "bundle"})


def words(home: Home, profile: Profile, login: databases.Login, at: Address, *, given: bool = False) -> dict[str, str]:
    """The values that a Form is filled in with, for a login that is used at an address.

    Args:
        home, profile: the user's.
        login: to the database. at: where its clients connect.
        given: whether its files are the user's own (`--cert`), under whatever names.
    """
    destination, credentials = login.destination, login.credentials
    return {
        "host": at.host,
        "port": str(at.port),
        "address": str(at),
        "user": destination.user,
        "unnamed": "" if destination.user else "USER",
        "database": destination.database,
        "cas": str(home.keys(profile).cas),
        "certificate": str(credentials.certificate),
        **(_given(credentials) if given else _own(credentials, destination.name)),
    }


def _own(credentials: Credentials, name: str) -> dict[str, str]:
    folder = credentials.certificate.parent
    return {
        "key": str(credentials.key),
        "named_certificate": str(folder / f"{name}-x509.pem"),
        "named_key": str(folder / f"{name}.key"),
        "bundle": str(folder / f"{name}.pem"),
    }


def _given(credentials: Credentials) -> dict[str, str]:
    """What is known of somebody else's files; "" is what they are not, or do not hold."""
    certificate, key = credentials.certificate, credentials.key
    if certificate == key:
        whole = str(certificate) if _holds_key(certificate) else ""
        return {"key": whole, "named_certificate": "", "named_key": "", "bundle": whole}
    named = key.suffix in (".pem", ".key")
    parts = {"named_certificate": str(certificate), "named_key": str(key)} if named else dict.fromkeys(_NAMED, "")
    return {"key": str(key), "bundle": "", **parts}


def _holds_key(path: Path) -> bool:
    with path.open("rb") as file:
        return b"PRIVATE KEY-----" in file.read(MAX_FILE)


def usable(forms: Iterable[Form], found: Mapping[str, str]) -> list[Form]:
    """The forms for which no file is missing."""
    return [form for form in forms if all(found[name] for name in needed(form.text) if name in _MAY_LACK)]


def filled(form: Form, found: Mapping[str, str]) -> str:
    """A form with its values; what the login leaves to the client is written in capitals."""
    spared = set(optional(form.text))
    known = {name: value or ("" if name in spared else name.upper()) for name, value in found.items()}
    quoted = {name: form.quote(value) if value and name != "address" else value for name, value in known.items()}
    text = fill(form.text, quoted)
    return f"{form.program} {_in_double_quotes(text)}" if form.program else text


def _in_double_quotes(text: str) -> str:
    return '"' + "".join("\\" + char if char in '"\\$`' else char for char in text) + '"'


def environment(home: Home, profile: Profile, name: str) -> dict[str, str]:
    """`tsh db env`: the variables by which programs reach a database straight at the proxy.

    Raises:
        Failure: not logged in to it, its protocol has none, or its programs are not served without a local proxy.
    """
    login, protocol = _login(home, profile, name)
    if not protocol.ways.environment:
        others = _else(protocol, name)
        raise Failure(f"programs for {protocol.title} take no such settings from the environment: {others}")
    found = words(home, profile, login, _straight(profile, protocol, name))
    pairs = {variable: fill(text, found) for variable, text in protocol.ways.environment}
    return {variable: value for variable, value in pairs.items() if value}


def offered(command: str) -> list[tuple[str, str]]:
    """What `tsh db env` or `tsh db config` has for each protocol, for their help."""
    rows = []
    for protocol in TABLE.values():
        settings, found = protocol.ways.settings, ""
        if command == "env":
            found = ", ".join(variable for variable, _ in protocol.ways.environment)
        elif settings is not None:
            found = f"~/{settings.file}, used as: {fill(settings.use, {'service': 'NAME'})}"
        rows.append((protocol.title, found or "there is none, use tsh proxy db"))
    return rows


def exports(pairs: Mapping[str, str], output: str = "text") -> str:
    """The variables for a shell to evaluate, or as a JSON object."""
    if output == "json":
        return json.dumps(pairs, indent=2) + "\n"
    return "".join(f"export {variable}={shlex.quote(value)}\n" for variable, value in pairs.items())


@dataclass(frozen=True, slots=True)
class Entry:
    """One section of a settings file: where it belongs, its lines, and how it is used."""

    path: Path
    section: str
    lines: tuple[str, ...]
    use: str

    @property
    def text(self) -> str:
        """The section as it stands in the file."""
        return "\n".join((f"[{self.section}]", *self.lines)) + "\n"


def entry(home: Home, profile: Profile, name: str, service: str = "", environ: Mapping[str, str] = os.environ) -> Entry:
    """`tsh db config`: a section that names files, not what is in them, and so outlives every renewal.

    Args:
        home, profile: the user's login.
        name: of the database. service: of the section, as the database if empty.
        environ: for `~`, and for a file that a variable names.

    Raises:
        Failure: not logged in to it, its protocol has no such file, its programs are not served without a local
            proxy, or a value cannot stand in one.
    """
    login, protocol = _login(home, profile, name)
    settings = protocol.ways.settings
    if settings is None:
        raise Failure(f"programs for {protocol.title} read no settings file: {_else(protocol, name)}")
    service = _service(service or name)
    found = words(home, profile, login, _straight(profile, protocol, name))
    values = {key: settings.quote(value) if value else "" for key, value in found.items()}
    pairs = ((key, fill(text, values)) for key, text in settings.lines)
    lines = [f"{_MARK}database {name} of {profile.cluster}", *(f"{key}={value}" for key, value in pairs if value)]
    if any(not line.isprintable() for line in lines):
        raise Failure(f"a path or name with control characters cannot stand in {settings.file}")
    section = fill(settings.section, {"service": service})
    return Entry(_file(settings, environ), section, tuple(lines), fill(settings.use, {"service": service}))


def _service(service: str) -> str:
    """The service's name, if it can stand between brackets and behind `service=`; raises Failure."""
    if not _SERVICE.fullmatch(service):
        raise Failure(f"{service!r} cannot be a service: at most 64 letters, digits and -_.")
    return service


def write(home: Home, made: Entry) -> None:
    """Puts the section into its file in one step, in place of an earlier one of ours; all else stays, byte by byte.

    Raises:
        Failure: the file has a section of this name that is not ours, or it cannot be read or written.
    """
    try:
        with files.locked(home.path):  # one tsh at a time; what others do to the file meanwhile is between them and it
            files.make_folder(made.path.parent)
            before, mode = _read(made.path)
            files.replace(made.path, _with_section(before, made), mode)
    except OSError as error:
        raise Failure(f"cannot write {made.path}: {(error.strerror or str(error)).lower()}") from None


def _login(home: Home, profile: Profile, name: str) -> tuple[databases.Login, Description]:
    """A login that is on disk, ended or not: what is written about it holds after its renewal."""
    login = next((each for each in databases.logins(home, profile) if each.destination.name == name), None)
    if login is None:
        raise Failure(f"not logged in to a database {name!r}: tsh db login {name}")
    return login, databases.protocol_of(login.destination)


def _straight(profile: Profile, protocol: Description, name: str) -> Address:
    """The proxy's port under the name that its certificate is checked for; raises Failure if it has none for these."""
    if not protocol.routing.greets:
        return Address(profile.server_name, profile.proxy.port)
    port = profile.database_ports.get(protocol.listen_key)
    if port is None:
        raise Failure(
            f"{profile.proxy} has no port that greets {protocol.title} clients: use tsh proxy db {name}, or ask for "
            f"{protocol.listen_key} and then log in again"
        )
    return Address(profile.server_name, port)


def _else(protocol: Description, name: str) -> str:
    """The commands that lead to a database where another has nothing for its protocol."""
    others = ["tsh proxy db", *(["tsh db env"] if protocol.ways.environment else [])]
    others += ["tsh db config"] if protocol.ways.settings is not None else []
    return "use " + " or ".join(f"{command} {name}" for command in others)


def _file(settings: Settings, environ: Mapping[str, str]) -> Path:
    named = environ.get(settings.variable) if settings.variable else None
    return Path(named).absolute() if named else user_home(environ) / settings.file


def _read(path: Path) -> tuple[bytes, int]:
    """The file as it is and its permission bits; for one that is not there, what a new one gets."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
            mode = os.fstat(file.fileno()).st_mode & 0o777
    except FileNotFoundError:
        return b"", files.PRIVATE_FILE
    if len(content) > MAX_FILE:
        raise Failure(f"{path} has more than {MAX_FILE} bytes: it is left alone")
    return content, mode


def _with_section(before: bytes, made: Entry) -> bytes:
    lines = before.splitlines(keepends=True)
    header = f"[{made.section}]".encode()
    text = made.text.encode("utf-8", "surrogateescape")
    start = next((number for number, line in enumerate(lines) if line.strip().startswith(header)), None)
    if start is None:
        gap = b"" if not before else b"\n" if before.endswith(b"\n") else b"\n\n"
        return before + gap + text
    end = start + 1
    if end == len(lines) or not lines[end].startswith(_MARK.encode()):
        raise Failure(
            f"{made.path} has a section [{made.section}] that tsh did not write: choose another name with --service"
        )
    end += 1
    while end < len(lines) and lines[end].strip()[:1] not in (b"", b"#", b"["):
        end += 1
    return b"".join(lines[:start]) + text + b"".join(lines[end:])
