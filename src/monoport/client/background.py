"""Going on in the background while the caller's shell gets its prompt back: `tsh ssh -f`.

Belongs here: the two processes. Does not belong here: what goes on, and when the caller may go (openssh.py).
"""

import os
from collections.abc import Callable


def in_background(work: Callable[[Callable[[], None]], int]) -> int:
    """Runs `work` in a child and returns an exit status: in the child that of `work`, in the caller 0 once it may go.

    Args:
        work: is given a function, which lets the caller go and takes the child off its terminal; where it is not
            called, the caller's status is the child's.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with open(reading, "rb") as told:
            if told.read(1):
                return 0
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code
    os.close(reading)

    def let_go() -> None:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nothing, number)
        os.close(nothing)
        os.write(writing, b"\0")
        os.close(writing)

    return work(let_go)
