"""What the contracts must know of MongoDB: how a client begins, and a server that lets the agent's user in."""

from ...scenarios.mongo import Server, opening  # noqa: TID252 # tests are no package

__all__ = ["Server", "opening"]
