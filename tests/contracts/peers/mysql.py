"""What the contracts must know of MySQL: how a client begins, and a server that lets the agent's user in."""

from monoport.net.stream import Stream
from monoport.wire.mysql.handshake import NATIVE, Answer
from monoport.wire.mysql.packets import Capability, packet

from ...scenarios.mysql import BASIC, OK, Server, read_packet  # noqa: TID252 # tests are no package

__all__ = ["Server", "let_in", "opening"]


def opening(user: str, database: str) -> bytes:
    """All that a client says before it waits to be let in; it has read the greeting."""
    answer = Answer(BASIC | Capability.CONNECT_WITH_DB, user, database, plugin=NATIVE)
    return packet(1, answer.encode())


async def let_in(client: Stream) -> None:
    """Read the greeting, and the server's own OK."""
    assert (await read_packet(client))[0] == 0
    assert await read_packet(client) == (2, OK)
