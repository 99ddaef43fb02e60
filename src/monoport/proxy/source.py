"""Where a connection came from, as text: in logs, audit events, prefaces and listings alike.

Belongs here: that one form. Which address it is, the listener knows.
"""

from monoport.net.arrival import Source


def shown(source: Source) -> str:
    """The address as host:port, a v6 host in brackets."""
    host, port = source[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
