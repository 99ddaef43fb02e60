"""Why the auth service says no: one class for each answer that a caller can tell apart.

Belongs here: names and codes. What leads to them, the rooms that raise them know; HTTP statuses, `api` knows.
"""

from collections.abc import Mapping
from typing import ClassVar

from monoport.errors import Failure


class Refusal(Failure):
    """The service refuses; `code` travels in the answer, the text is for the user.

    Args:
        rule: which rule decided, where one did; for the audit log alone.
        about: fields of the event that says so.
    """

    code: ClassVar[str] = "refused"
    recorded: ClassVar[bool] = False  # who raises it has put it into the audit log already

    def __init__(self, message: str, rule: str = "", **about: object) -> None:
        super().__init__(message)
        self.rule = rule
        self.about: Mapping[str, object] = about


class Forbidden(Refusal):
    """The caller is known and may not do this; there is always a rule."""

    code = "access_denied"

    def __init__(self, message: str, rule: str, **about: object) -> None:
        super().__init__(message, rule, **about)


class NameOwned(Forbidden):
    """The name of a node or database belongs to other hosts; the text names the ways out."""

    code = "name_owned"
    recorded = True


class Removed(Forbidden):
    """An administrator removed the database that a running agent registers; the text names the ways back."""

    code = "removed"


class Invalid(Refusal):
    """The request makes no sense as it is."""

    code = "bad_request"


class NotFound(Refusal):
    """There is no such thing, or, by a rule, none for this caller, who is not told which."""

    code = "not_found"


class Exists(Refusal):
    """There is one already."""

    code = "exists"


class Conflict(Refusal):
    """Something else changed it at the same time, or still needs it."""

    code = "conflict"


class WrongPassword(Refusal):
    """The name is unknown or the password is wrong; nobody is told which."""

    code = "wrong_password"

    def __init__(self) -> None:
        super().__init__("wrong user name or password")


class LoginLocked(Refusal):
    """Too many failures for this name, known or not."""

    code = "login_locked"


class TooBusy(Refusal):
    """More work waits than can be done soon."""

    code = "busy"


class UserLocked(Refusal):
    """The password was right; an administrator has locked the account."""

    code = "locked"


class SessionUnknown(Refusal):
    """No such session, or its first event has not come yet: to be tried again."""

    code = "session_unknown"


class TokenUnknown(Refusal):
    """No such join token."""

    code = "token_unknown"


class TokenExpired(Refusal):
    """The join token was good once."""

    code = "token_expired"


class TokenType(Refusal):
    """The join token is for something else."""

    code = "token_type"
