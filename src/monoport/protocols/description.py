"""The shape of a protocol's description: a frozen value from which everything that varies by protocol is derived.

Belongs here: `Description` and what it is made of. One protocol's own values live in `protocols/<name>.py`, as a
constant called PROTOCOL.
"""

from collections.abc import Callable
from dataclasses import dataclass

from monoport.routing.rows import DatabaseRule
from monoport.wire.front import Front


@dataclass(frozen=True, slots=True)
class Shell:
    """How tsh opens a protocol's command-line client: words with {host}, {port}, {user}, {database} to fill in.

    A part in [square brackets] is left out where a value in it is empty, and so is a whole word in which one is empty
    outside of brackets.
    """

    program: str
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    install: str = ""  # what to tell a user who has not got it
    quote: Callable[[str], str] = str  # makes a value safe inside a word
    others: tuple[str, ...] = ()  # programs that take the same words, where the first is not installed
    # File name of a Unix socket, "" if clients know none; {socket} is then its path, {host} the folder that it is in.
    socket: str = ""
    socket_ending: str = ""  # of every socket's name, where clients tell a socket from a host by it

    @property
    def socket_by_port(self) -> bool:
        """Whether clients are told the socket's folder and a port, and make its name from those."""
        return "{port}" in self.socket


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write a connection down, for people and programs to paste.

    Args:
        label: the program or format.
        text: with {host}, {port}, {address} (both, as in a URI), {user}, {database}, and paths to fill in: {cas},
            {certificate} and {key}; {named_certificate} and {named_key}, whose names end in .pem and .key; {bundle},
            certificate and key in one file; {unnamed}, which is USER where the login leaves the user to the client, for
            forms that need none otherwise. A part in [square brackets] is left out where a value in it is empty.
        quote: makes a value safe inside the text; an {address} needs it not.
        program: if the text is the one argument of a program, its name.
    """

    label: str
    text: str
    quote: Callable[[str], str] = str
    program: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """A file of named sections in which a protocol's clients look up how to connect.

    Args:
        file: its path under `$HOME`. variable: of the environment, which may name another file; "" if there is none.
        section: the section's name, made of {service}.
        lines: key and value of each line, filled in as those of a Form; one whose value stays empty is left out.
        use: how a section is used, with {service}. quote: makes a value safe in a line.
    """

    file: str
    variable: str
    section: str
    lines: tuple[tuple[str, str], ...]
    use: str
    quote: Callable[[str], str] = str


@dataclass(frozen=True, slots=True)
class Ways:
    """How people and programs are told to connect.

    Args:
        lent: through a local proxy's port that brings the certificate. socket: the same on a Unix socket, {host} its
            folder where clients are told the folder, else its path. own: through a port to which clients bring TLS.
        environment: of programs that connect straight to the proxy; variables whose value stays empty are left out.
        settings: the file for the same, if there is one.
    """

    lent: tuple[Form, ...] = ()
    socket: tuple[Form, ...] = ()
    own: tuple[Form, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    settings: Settings | None = None


@dataclass(frozen=True, slots=True)
class Description:
    """One database protocol: how it is recognised, spoken to, reached and opened."""

    routing: DatabaseRule  # its name, how the front door recognises it, and what is answered before TLS
    title: str  # for people
    default_port: int  # of a real server
    front: Callable[[], Front]  # the proxy's side of the opening, one per connection
    engine: str  # module that speaks to the real server; ours are under agents/
    shell: Shell
    ways: Ways = Ways()
    needs_user: bool = True  # a login must name a database user
    needs_database: bool = True  # and a database
    passwords: bool = False  # its engine can prove itself by `password_file`, too
    listen_key: str = ""  # of `proxy_service`: a port of its own for clients that do not share the one port
    silence_key: str = ""  # of `proxy_service`: seconds after which it greets silent clients of the one port
    # Settings of a real server, for its administrator: lines with {certificate}, {key} and {cas}, files; {bundle}, a
    # file to be made of the first two; {cluster}, its name.
    server: str = ""
    aliases: tuple[str, ...] = ()  # further spellings of `name` that a configuration may use

    def __post_init__(self) -> None:
        """Reject a description that could never be served. Raises ValueError."""
        if not self.name.isidentifier() or not self.name.islower():
            raise ValueError(f"protocol name {self.name!r} is not a lower-case identifier")
        if not self.alpn:
            raise ValueError(f"protocol {self.name} has no ALPN name of its own")
        if self.silence_key and not self.routing.greets:
            raise ValueError(f"protocol {self.name} names {self.silence_key}, but greets nobody")

    @property
    def name(self) -> str:
        """Its name in configuration, certificates, audit and commands."""
        return self.routing.name

    @property
    def alpn(self) -> tuple[str, ...]:
        """Private ALPN names, the canonical one first: the outer certificate is optional."""
        return self.routing.alpn

    @property
    def direct_alpn(self) -> tuple[str, ...]:
        """ALPN names that the protocol's own clients offer: a certificate is required."""
        return self.routing.direct_alpn
