"""Names that users type and servers send, checked before they become addresses or parts of paths.

Belongs here: `HOST:PORT` of a proxy, names that become file names. Does not belong here: who a name resolves to.
"""

import re
from dataclasses import dataclass
from typing import Self

from monoport.errors import Failure

DEFAULT_PORT = 3080  # proxy_service.web_listen_addr without a port of its own

MAX_NAME = 128  # bytes; with "-x509.pem" behind it, far below the 255 of every file system

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+:=-]*")


def file_name(name: str, what: str) -> str:
    """The name unchanged, if it can be one part of a path and of an ssh configuration line.

    Args:
        name: a user, cluster, database or proxy host name, from the command line or from a server.
        what: what it names, for the error.

    Raises:
        Failure: empty, too long, or with anything but letters, digits and `_ . @ + : = -` in it.
    """
    if _SAFE.fullmatch(name) and len(name) <= MAX_NAME:
        return name
    raise Failure(
        f"{name!r} cannot be the name of a {what}: at most {MAX_NAME} letters, digits and _.@+:=-, "
        "the first a letter, digit or _"
    )


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a TCP port; `str()` writes it as `host:port`, with brackets around an IPv6 address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(
        cls, text: str, default_port: int | None = DEFAULT_PORT, what: str = "proxy address", least_port: int = 1
    ) -> Self:
        """Reads `host`, `host:port`, `[::1]:port` or `https://host:port`.

        Args:
            text: as the user typed it.
            default_port: what a missing port means; None if there must be one.
            what: what it is the address of, for the error.
            least_port: 0 where that means any free port.

        Raises:
            Failure: it is not of that form, or the port is above 65535 or below the least.
        """
        bare = text.strip().removeprefix("https://").rstrip("/")
        matched = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/\[\]@]+))(?::([0-9]{1,5}))?", bare)
        if matched is None:
            raise Failure(f"{text!r} is not a {what}: write HOST:PORT")
        if matched[3] is None and default_port is None:
            raise Failure(f"{text!r} has no port: write HOST:PORT")
        port = int(matched[3]) if matched[3] else default_port or 0
        if not least_port <= port < 65_536:
            raise Failure(f"{text!r}: a port is a number from {least_port} to 65535")
        host = (matched[1] or matched[2]).lower().rstrip(".")
        return cls(file_name(host, "host") if not matched[1] else host, port)
