"""The one exception that every room may raise towards a user, and how a refusal says which connection it was.

Belongs here: those two. Errors that only code reads live beside the code that raises them.
"""


class Failure(Exception):
    """An error whose text is one clear line, fit to be shown to a user as it stands."""


def traced(reason: str, connection: str) -> str:
    """Return a refusal for a client with the connection's id behind it, by which its log lines and events are found.

    Args:
        reason: what was refused, without a rule.
        connection: the id that the front door gave; nothing that a client sent.
    """
    return f"{reason} [connection {connection}]"
