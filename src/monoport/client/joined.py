"""What a local port says of the connections that it joins: one line for each that the other end breaks off,
others by --debug.

Belongs here: that line. Does not belong here: joining (localproxy.py, sshlocal.py), where lines go (cli).

A line has both ends: the program's, and ours on the way to the proxy. That one is the `source` beside the id of the
connection in the proxy's log and in the audit log.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from monoport.client.names import Address
from monoport.net.meter import Meter

_log = logging.getLogger("monoport.client")  # the CLI shows it with --debug


def came_from(address: Any) -> str:
    """The address that `accept` gave, for people; programs at a Unix socket have none."""
    return str(Address(*address[:2])) if isinstance(address, tuple) else "a program at our socket"


@dataclass(slots=True)
class Joined:
    """One connection of a local port.

    Args:
        peer: whose it is. report: gets the line of an error.
        origin: " [from HOST:PORT]" of our end at the proxy, "" before there is one.
    """

    peer: str
    report: Callable[[str], None]
    origin: str = ""

    def begin(self, origin: str) -> None:
        """Note that it has reached the proxy."""
        self.origin = origin
        _log.debug("connection of %s joined%s", self.peer, origin)

    def over(self, meter: Meter) -> None:
        """Say how its relay ended, if not well; a program that breaks off by itself knows that it does."""
        if meter.client_broke:
            _log.debug("connection of %s ended by itself: %s%s", self.peer, meter.ended, self.origin)
        else:
            self.broke(meter.ended)

    def broke(self, error: object) -> None:
        """Say that an error ended it; "" is none."""
        if said := str(error) or (type(error).__name__ if isinstance(error, Exception) else ""):
            self.report(f"connection of {self.peer} broke off: {said}{self.origin}")
