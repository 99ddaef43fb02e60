"""The one exception that every room may raise towards a user.

Belongs here: `Failure` alone. Errors that only code reads live beside the code that raises them.
"""


class Failure(Exception):
    """An error whose text is one clear line, fit to be shown to a user as it stands."""
