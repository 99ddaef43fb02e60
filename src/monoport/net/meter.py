"""What a relay counts.

Belongs here: `Meter`. Does not belong here: metrics of the process.
"""


class Meter:
    """How much has passed, and how it ended."""

    __slots__ = ("bytes_in", "bytes_out", "client_broke", "ended")

    def __init__(self) -> None:
        self.bytes_in = 0  # from `a`, the client's side, to `b`
        self.bytes_out = 0
        self.ended = ""  # empty: both sides ended cleanly
        self.client_broke = False  # they did not, and it was `a` that broke off
