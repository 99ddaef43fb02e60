"""Somebody else's package with a database protocol, as pip would lay it out in a folder of sys.path."""

from __future__ import annotations

from pathlib import Path

PROGRAM = '''
"""The protocol `greet`: a client writes one line, and is greeted by the name it has at the database."""

from monoport.protocols.description import Description, Form, Shell, Ways
from monoport.routing.rows import DatabaseRule
from monoport.wire.front import Closed, Login, Secured, Why

MAX_LINE = 1024


class Front:
    def __init__(self):
        self.seen, self.secured = b"", None

    def begin(self, secured, known=None):
        self.secured = secured

    def receive(self, data):
        self.seen += data
        if self.secured is not Secured.CERTIFIED:
            return Closed("a client certificate is required", Why.TLS_REQUIRED)
        if len(self.seen) > MAX_LINE:
            return Closed(f"no line in {len(self.seen)} bytes, limit {MAX_LINE}", Why.PROTOCOL)
        return Login("", "", self.seen) if self.seen.endswith(b"\\n") else None

    def refuse(self, why, reason):
        return f"no: {reason}\\n".encode()


class Greet:
    def __init__(self, database, issuer):
        self.database, self.issuer = database, issuer

    async def reach(self, session):
        pass  # it is its own server

    async def serve(self, session, client):
        line = await client.read(MAX_LINE)
        shown = await self.issuer.client_certificate(
            session.user,
            certificate=session.certificate,
            name=self.database.name,
            database=session.database,
            connection=session.connection,
        )
        said = f"{session.user} said {line.decode().strip()}"
        client.send(f"{said}, and has a certificate: {shown is not None}\\n".encode())
        client.send_eof()
        while await client.read(MAX_LINE):
            pass  # who returns has ended the connection, whatever is still on its way

    async def cancel(self, session):
        pass

    async def probe(self):
        return "Greet 1"


ENGINE = Greet
PROTOCOL = Description(
    routing=DatabaseRule(name="greet", alpn=("teleport-greet",)),
    title="Greet",
    default_port=7777,
    front=Front,
    engine="greet_for_monoport",
    shell=Shell(program="nc", arguments=("{host}", "{port}")),
    ways=Ways(lent=(Form("nc", "nc {host} {port}"),)),
    needs_database=False,
)
'''


def install(folder: Path, points: dict[str, str], name: str = "greet-for-monoport", program: str = PROGRAM) -> None:
    """Lay out a distribution.

    Args:
        folder: of sys.path. points: name and object of each entry point `monoport.protocols`.
        name: of the distribution; its one module is called likewise. program: the module's text.
    """
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(program)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "".join(f"{point} = {target}\n" for point, target in points.items())
    (info / "entry_points.txt").write_text(f"[monoport.protocols]\n{lines}")
