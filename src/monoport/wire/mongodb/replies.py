"""A server's stream as the agent reads it: where replies begin and end, and the few that are not passed as they are.

Belongs here: lengths, whose answer a reply is, whether more follow. What is in a reply is nobody's business but where
`keep` asks for the whole of it.
"""

from collections.abc import Sequence
from struct import Struct

from monoport.wire.mongodb.messages import HEADER, MAX_REPLY, MORE_TO_COME, MSG, ProtocolError

MAX_UNWANTED = 1024  # requests that are remembered as such: a server that answers them is never far behind
_HEAD = HEADER.size + 4  # the header and the flags of an OP_MSG
_U32 = Struct("<I")

Data = bytes | memoryview


class Replies:
    """Follows the replies to one request after the other."""

    __slots__ = ("_drop", "_expected", "_head", "_keep", "_kept", "_left", "_more", "_unwanted", "begun", "done")

    def __init__(self) -> None:
        self._expected = 0
        self._head = bytearray()
        self._left = 0  # bytes of the present reply that have not come
        self._more = False
        self._drop = False
        self._unwanted: dict[int, None] = {}  # requests without a reply, which some servers answer all the same
        self._keep = 0  # bytes of a reply that is kept, 0 to pass it on
        self._kept = bytearray()
        self.done = True  # nothing is expected
        self.begun = False  # a reply is on its way in parts: nothing else can be said to the client

    def expect(self, request_id: int, *, keep: int = 0) -> None:
        """Wait for the reply to a request; `keep`: read it as a whole, so many bytes at most, and pass nothing on."""
        assert self.done
        self._expected, self._keep, self.done, self.begun = request_id, keep, False, False
        self._more = False
        self._kept = bytearray()

    def unwanted(self, request_id: int) -> None:
        """Note a request that says it wants no reply: one that comes is thrown away."""
        self._unwanted[request_id] = None
        if len(self._unwanted) > MAX_UNWANTED:
            del self._unwanted[next(iter(self._unwanted))]

    def receive(self, data: Data) -> Sequence[Data]:
        """Take the server's bytes and return those to pass on. Raises ProtocolError, for bytes out of turn too."""
        out: list[Data] = []
        view = memoryview(data)
        while view:
            if self.done and not self._left and not self._unwanted:
                raise ProtocolError("server speaks without being asked")
            if self._left:
                part, view = view[: self._left], view[self._left :]
                self._left -= len(part)
                self._pass(part, out)
                if not self._left and self._drop:
                    self._drop = False
                elif not self._left and not self._more:
                    self.done, self.begun = True, False
                continue
            if not self._head and len(view) >= _HEAD:
                self._open(bytes(view[:_HEAD]))  # goes on in one piece with what follows it
                continue
            part = view[: _HEAD - len(self._head)]
            self._head += part
            view = view[len(part) :]
            if len(self._head) == _HEAD:
                head, self._head = bytes(self._head), bytearray()
                self._open(head)
                self._left -= _HEAD
                self._pass(head, out)
        return out

    def whole(self) -> bytes:
        """The reply that was to be kept."""
        assert self.done
        return bytes(self._kept)

    def _pass(self, part: Data, out: list[Data]) -> None:
        if self._drop:
            return
        if self._keep:
            self._kept += part
        else:
            self.begun = True
            out.append(part)

    def _open(self, head: bytes) -> None:
        size, request_id, response_to, opcode = HEADER.unpack_from(head)
        limit = self._keep or MAX_REPLY
        if opcode != MSG:
            raise ProtocolError(f"server answers with a message of kind {opcode}")
        if not _HEAD < size <= limit:
            raise ProtocolError(f"server's reply of {size} bytes, limit {limit}")
        self._left = size
        if response_to in self._unwanted:
            del self._unwanted[response_to]
            self._drop = True
            return
        if self.done or response_to != self._expected:
            raise ProtocolError(f"server answers request {response_to}, not {self._expected}")
        self._more = bool(_U32.unpack_from(head, HEADER.size)[0] & MORE_TO_COME)
        if self._more:
            if self._keep:
                raise ProtocolError("server goes on where one reply was asked for")
            self._expected = request_id  # what the next reply of a stream says it answers
