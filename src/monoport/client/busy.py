"""What takes a moment is announced, so that a terminal does not stay silent.

Belongs here: the shape of that announcement, and none. How and when it is shown, the command line decides.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Busy = Callable[[str], AbstractContextManager[None]]


def quiet(_what: str) -> AbstractContextManager[None]:
    """Announces nothing."""
    return nullcontext()
