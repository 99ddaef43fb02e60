"""MongoDB's opening as the proxy sees it: TLS at once, then the client's first message, which is a hello.

Belongs here: what may come first, and how a client that is refused learns why. No identity, no permission: the proxy
decides those.
"""

from monoport.wire.front import NOTHING_KNOWN, Closed, Known, Login, Secured, Send, StartTls, Step, Why
from monoport.wire.mongodb import hello
from monoport.wire.mongodb.messages import Framer, Message, ProtocolError, answer, msg, parse

MAX_OPENING = 16_384  # bytes of a first message, unpacked: metadata has 512, speculative authentication about as many


MAX_TOLD = 4  # answers to a client that is refused: drivers try some commands a second time
MAX_USER = 256  # bytes of a user's name, far beyond what a certificate's common name may have


class MongoFront:
    """Reads one client's first message; every method is pure and bounded by MAX_OPENING bytes."""

    __slots__ = ("_done", "_first", "_framer", "_refusing", "_secured")

    def __init__(self) -> None:
        self._secured = Secured.PLAIN
        self._framer = Framer(MAX_OPENING)
        self._first: Message | None = None
        self._refusing: Refusing | None = None
        self._done = False

    def begin(self, secured: Secured, known: Known = NOTHING_KNOWN) -> Step | None:
        """Start on a stream that is `secured`: without a certificate the client must bring TLS of its own at once."""
        self._secured = secured
        if secured is Secured.CERTIFIED:
            return None
        return StartTls(b"")

    def receive(self, data: bytes) -> Step | None:
        """Take the client's bytes and return the next step, None while its message is incomplete."""
        if self._done:
            return Closed("bytes behind the end of the opening", Why.PROTOCOL)
        if self._secured is not Secured.CERTIFIED:
            return self._close("a client certificate is required")
        try:
            whole = self._framer.receive(data)
            if whole is None:
                return None
            first = parse(whole, limit=MAX_OPENING)
            name = hello.hello_name(first)
            user = hello.named_user(first) if name is not None else ""
        except ProtocolError as error:
            return self._close(str(error))
        self._first = first
        if name is None:
            return self._close("a connection begins with hello")
        if self._framer.waiting:
            return self._close("bytes behind hello, which has to be answered first")
        if fault := _name_fault(user):
            return self._close(fault)
        self._done = True
        return Login(user, "", whole)

    def refuse(self, why: Why, reason: str) -> bytes:
        """Return the answer to the client's hello: a driver reports only how its own commands fail.

        Before a hello has come, the error itself.
        """
        if self._first is None:
            return msg(hello.error(hello.CODES[why], reason), request_id=1)
        self._refusing = Refusing(why, reason)
        return self._refusing.answer(self._first)

    def explain(self, data: bytes) -> Step | None:
        """Take the bytes of a client that was refused, and return what it is told."""
        return self._refusing.receive(data) if self._refusing is not None else Closed("refused")

    def _close(self, reason: str) -> Closed:
        self._done = True
        return Closed(reason, Why.PROTOCOL)


def _name_fault(user: str) -> str:
    if len(user.encode()) > MAX_USER:
        return f"user name of {len(user.encode())} bytes, limit {MAX_USER}"
    return "" if user.isprintable() else "user name contains control characters"


class Refusing:
    """Answers a client that may not go on: hello as a server would, the first command with why."""

    __slots__ = ("_code", "_framer", "_reason", "_said")

    def __init__(self, why: Why, reason: str) -> None:
        self._code = hello.CODES[why]
        self._reason = reason
        self._framer = Framer(MAX_OPENING)
        self._said = 0

    def receive(self, data: bytes) -> Step | None:
        """Take the client's bytes and return the next step; Closed once it was told often enough."""
        if self._said > MAX_TOLD:
            return Closed("told why it is refused")
        try:
            whole = self._framer.receive(data)
            return None if whole is None else Send(self.answer(parse(whole, limit=MAX_OPENING)))
        except ProtocolError as error:
            return Closed(str(error))

    def answer(self, message: Message) -> bytes:
        """Return the answer to one message."""
        self._said += 1
        if hello.hello_name(message) is not None:
            # For who looks at the bytes: a driver shows only what its own commands are answered.
            return answer(hello.hello_reply(message) | {"refused": self._reason}, message, self._said)
        return answer(hello.error(self._code, self._reason), message, self._said)
