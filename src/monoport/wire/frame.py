"""Length-prefixed JSON frames: a 32-bit big-endian length, then one JSON object in UTF-8.

Belongs here: the codec. Not here: what the objects mean (`tunnel.preface`) and how long to wait for them.
"""

import json
from collections.abc import Mapping
from typing import Any, NoReturn

MAX_FRAME = 65_536  # a certificate with long lists of roles reaches 20 KiB; this caps what a peer makes us hold
HEADER = 4


class FrameError(ValueError):
    """Bytes that can never become a frame; the text says why."""


def encode(obj: Mapping[str, Any]) -> bytes:
    """Return one frame that holds `obj`.

    Raises FrameError where the frame would be larger than MAX_FRAME bytes.
    """
    body = json.dumps(obj, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    if len(body) > MAX_FRAME:
        raise FrameError(f"frame of {len(body)} bytes, limit {MAX_FRAME}")
    return len(body).to_bytes(HEADER, "big") + body


def size(header: bytes) -> int:
    """Return how many bytes follow a HEADER of four bytes; raises FrameError outside 2..MAX_FRAME."""
    length = int.from_bytes(header[:HEADER], "big")
    if not 2 <= length <= MAX_FRAME:
        raise FrameError(f"frame of {length} bytes announced, limit {MAX_FRAME}")
    return length


def decode(buffer: bytes | bytearray | memoryview) -> tuple[dict[str, Any], int] | None:
    """Return the first frame's object and the bytes it took, or None while more are needed.

    Raises FrameError for a length out of bounds, bad UTF-8, bad JSON, a repeated key, and anything but an object.
    """
    if len(buffer) < HEADER:
        return None
    length = size(bytes(buffer[:HEADER]))
    if len(buffer) < HEADER + length:
        return None
    return body(bytes(buffer[HEADER : HEADER + length])), HEADER + length


def body(data: bytes) -> dict[str, Any]:
    """Return the object in a frame's body, without its header; raises FrameError."""
    try:
        obj = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_constant)
    except FrameError:
        raise
    except (ValueError, RecursionError) as error:
        raise FrameError(f"frame is not JSON: {type(error).__name__}") from error
    if not isinstance(obj, dict):
        raise FrameError("frame is not a JSON object")
    return obj


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FrameError("frame repeats a key")
    return found


def _constant(name: str) -> NoReturn:
    raise FrameError(f"frame holds {name}, which JSON does not have")
