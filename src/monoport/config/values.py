"""The values that configuration keys take: addresses, names, switches, files.

Belongs here: reading one value and saying what was expected instead. Does not belong here: which keys there are
(model.py), values that depend on other keys (load.py).
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, NoReturn

from pydantic import BeforeValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from monoport.wire.names import HostNameError, canonical

MAX_FILE = 1_048_576  # bytes of a certificate, key or token file; the largest CA bundles are a quarter of that

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_PIN = re.compile(r"sha256:[0-9a-f]{64}")
RESERVED = frozenset({"kube", "db"})  # first labels of the names that routing itself uses


@dataclass(frozen=True, slots=True)
class Shown:
    """How the documentation names the type of a key."""

    text: str


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a TCP port; the port is 0 where the operating system or a default is to choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def problem(message: str, *, key: str | None = None, at_key: bool = False) -> PydanticCustomError:
    """Make the error that load.py turns into one line.

    Args:
        message: what is wrong and what is expected.
        key: the key below the value being validated that is to blame.
        at_key: point at the key and not at its value.
    """
    return PydanticCustomError("monoport", "{message}", {"message": message, "key": key, "at_key": at_key})


def show(value: object) -> str:
    """Quote a value for an error message: one line, printable, short."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = str(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if isinstance(value, int | float) else f'"{text}"'


def did_you_mean(word: str, known: list[str]) -> str:
    """Say which known word is nearest, or list them all when none is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f'did you mean "{near[0]}"?' if near else f"expected one of {', '.join(known)}"


def refuse_later(what: str, instead: str = "") -> NoReturn:
    """Refuse something that a later version will have and this one does not; `instead` is what there is."""
    expected = f"; expected {instead}" if instead else ""
    raise problem(f"{what} is not available in this version yet{expected}", at_key=True)


def parse_address(text: str, default_port: int | None, *, listens: bool = False) -> Address:
    """Read `host:port`, `[v6]:port` or a host alone.

    Args:
        text: as written by a person.
        default_port: taken when only a host is given; None where both host and port must be said.
        listens: also allow an empty host (every interface) and port 0 (any free port).

    Raises:
        ValueError: what is wrong with it, as the end of a sentence.
    """
    host, port_text = _split(text)
    if default_port is None:
        if not host or port_text is None:
            raise ValueError("both a host and a port are needed")
        default_port = 0  # not taken
    port = _port(port_text, lowest=0 if listens else 1) if port_text is not None else default_port
    if not host:
        if not listens:
            raise ValueError("the host is missing")
        return Address("0.0.0.0", port)  # noqa: S104 - what ":3080" asks for
    try:
        return Address(str(ip_address(host)), port)
    except ValueError:
        pass  # not an IP address: a name
    try:
        name = "" if text.startswith("[") else canonical(host)
    except HostNameError as error:
        raise ValueError(str(error)) from None
    if not re.search(r"[^0-9.]", name):  # looked at after canonical(): full-width digits become plain ones there
        raise ValueError(f'"{host}" is not an IP address')
    return Address(name, port)


def _split(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise ValueError("the brackets do not match")
        return host, rest[1:] if rest else None
    if text.count(":") > 1:
        try:
            IPv6Address(text)
        except ValueError:
            raise ValueError("it has more than one colon; an IPv6 address is written [::1]:3080") from None
        return text, None
    host, colon, port = text.partition(":")
    return host, port if colon else None


def _port(text: str, lowest: int) -> int:
    if not (text.isascii() and text.isdigit() and lowest <= int(text[:6]) <= 65_535 and len(text) <= 5):
        raise ValueError(f'the port "{text}" is not a number from {lowest} to 65535')
    return int(text)


def address(default_port: int | None, example: str, *, listens: bool = False) -> BeforeValidator:
    """Validate a key that takes an address."""

    def read(value: object) -> Address:
        if not isinstance(value, str):
            raise problem(f"{show(value)} is not an address; expected host:port, for example {example}")
        try:
            return parse_address(value, default_port, listens=listens)
        except ValueError as error:
            raise problem(f"{show(value)} is not an address: {error}; expected host:port, as in {example}") from None

    return BeforeValidator(read)


def _enabled(value: object) -> bool:
    word = value.lower() if isinstance(value, str) else value
    if word in {"yes", "true", "on"} or word is True:
        return True
    if word in {"no", "false", "off"} or word is False:
        return False
    raise problem(f"{show(value)} is neither yes nor no; expected yes or no")


def _resource_name(value: object) -> str:
    if not isinstance(value, str) or not _LABEL.fullmatch(value):
        expected = "expected lower-case letters, digits and hyphens, at most 63, as in orders-db"
        raise problem(f"{show(value)} is not a resource name; {expected}")
    if value in RESERVED:
        raise problem(f'"{value}" is a reserved name; expected any name but {" and ".join(sorted(RESERVED))}')
    return value


def _host_name(value: object) -> str:
    if not isinstance(value, str):
        raise problem(f"{show(value)} is not a host name; expected for example example.com")
    try:
        return canonical(value)
    except HostNameError as error:
        raise problem(f"{show(value)} is not a host name: {error}; expected for example example.com") from None


def _labels(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise problem(f"{show(value)} are not labels; expected a mapping, as in {{env: prod}}")
    labels = {}
    for name, text in value.items():
        if not isinstance(text, str | int | float):
            raise problem(f"label {show(name)} is {show(text)}; expected a string", key=name)
        labels[name] = text if isinstance(text, str) else show(text)
    return labels


def _path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise problem(f"{show(value)} is not a path; expected for example /var/lib/monoport")
    base = info.context["base"] if info.context else Path()
    return Path(base, Path(value).expanduser())


def _file(value: object, info: ValidationInfo) -> Path:
    path = _path(value, info)
    read_file(path)
    return path


def read_file(path: Path) -> bytes:
    """Read a small file that a key names; an error says why it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise problem(f"cannot read {path}: {error.strerror}; expected a readable file") from None
    if len(data) > MAX_FILE:
        raise problem(f"{path} is larger than {MAX_FILE} bytes; expected a certificate, key or token file")
    return data


def _secret_file(value: object, info: ValidationInfo) -> Path:
    path = _path(value, info)
    read_file(path)
    if path.stat().st_mode & 0o077:
        raise problem(f"{path} can be read by others than its owner; expected mode 0600")
    return path


def _version(value: object) -> str:
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or len(value) > 128:
        raise problem(f"{show(value)} is not a version; expected printable ASCII, as in 8.0.36")
    return value


def _silence(value: object) -> float:
    expected = "expected 100ms to 4s"
    found = re.fullmatch(r"(\d{1,4})(ms|s)", value) if isinstance(value, str) else None
    if found is None:
        raise problem(f"{show(value)} is not a time; {expected}")
    seconds = int(found[1]) / (1000 if found[2] == "ms" else 1)
    if not 0.1 <= seconds <= 4:  # a client's first bytes are waited for 5 s in all
        raise problem(f"{show(value)} is too short or too long; {expected}")
    return seconds


def _network(value: object) -> IPv4Network | IPv6Network:
    expected = "expected for example 10.0.0.5 or 10.0.0.0/24"
    if not isinstance(value, str):
        raise problem(f"{show(value)} is not a network; {expected}")
    try:
        network = ip_network(value)
    except ValueError:
        reason = "has host bits set" if _is_network(value) else "is not a network"
        raise problem(f"{show(value)} {reason}; {expected}") from None
    if not network.prefixlen:
        raise problem(f"{show(value)} is everybody; expected the addresses of machines that you run")
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped:
        raise problem(f"{show(value)} is IPv4 written as IPv6; {expected}")
    return network


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _pin(value: object) -> str:
    if not isinstance(value, str) or not _PIN.fullmatch(value.lower()):
        raise problem(
            f"{show(value)} is not a CA pin; expected sha256: and 64 hexadecimal digits, as tctl status prints"
        )
    return value.lower()


def _string_or_list(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


def says_off(value: object) -> bool:
    """Whether the value of a later version's key only says that it is not wanted."""
    if isinstance(value, Mapping):
        value = value.get("enabled")
    return value is False or (isinstance(value, str) and value.lower() in {"no", "off", "false"})


Switch = Annotated[bool, BeforeValidator(_enabled), Shown("yes or no")]
ResourceName = Annotated[str, BeforeValidator(_resource_name), Shown("name")]
HostName = Annotated[str, BeforeValidator(_host_name), Shown("host name")]
Labels = Annotated[Mapping[str, str], BeforeValidator(_labels), Shown("mapping of strings")]
AnyPath = Annotated[Path, BeforeValidator(_path), Shown("path")]
SecretFile = Annotated[Path, BeforeValidator(_secret_file), Shown("path of a file")]
Version = Annotated[str, BeforeValidator(_version), Shown("text")]
Silence = Annotated[float, BeforeValidator(_silence), Shown("time")]
ReadableFile = Annotated[Path, BeforeValidator(_file), Shown("path of a file")]
Pin = Annotated[str, BeforeValidator(_pin)]
Pins = Annotated[tuple[Pin, ...], BeforeValidator(_string_or_list), Field(strict=False), Shown("`sha256:…` or a list")]
Names = Annotated[tuple[str, ...], BeforeValidator(_string_or_list), Field(strict=False), Shown("name or list")]
Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]
Networks = Annotated[
    tuple[Network, ...], BeforeValidator(_string_or_list), Field(strict=False), Shown("address, network, or a list")
]
one_or_many = BeforeValidator(_string_or_list)
