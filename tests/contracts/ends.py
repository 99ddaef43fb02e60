"""A protocol's two ends for tests, found by its name; nothing here names one.

They are in `peers/<name>.py`: `opening(user, database)`, the bytes by which a client begins inside TLS, and
`Server.running(cluster)`, a scripted server on loopback; where the first bytes from there do not say that the user is
in, `let_in(client)` waits for those that do. A protocol without that file does not meet its contract.
"""

import importlib
from typing import Any

from monoport.protocols.description import Description


def ends(protocol: Description) -> Any:
    """The module of that protocol."""
    return importlib.import_module(f"{__package__}.peers.{protocol.name}")
