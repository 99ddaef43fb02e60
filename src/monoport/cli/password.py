"""Reading a password: hidden at a terminal, else one line of standard input.

Belongs here: this alone; a password is never an argument and never in the environment.
"""

import getpass
import signal
import sys
import threading

from monoport.errors import Failure

MAX_PASSWORD = 4096  # bytes; the auth service takes no longer ones


def read_password() -> str:
    """The password.

    Raises:
        Failure: standard input is empty, or its first line is too long.
    """
    if sys.stdin.isatty():
        return ask("Password: ")
    line = sys.stdin.buffer.readline(MAX_PASSWORD + 2)
    if not line:
        raise Failure("no password: standard input is empty and no terminal; give it as the first line")
    password = line.rstrip(b"\r\n")
    if len(password) > MAX_PASSWORD:
        raise Failure(f"the password is longer than {MAX_PASSWORD} bytes")
    try:
        return password.decode()
    except UnicodeDecodeError:
        raise Failure("the password is not UTF-8") from None


def ask(prompt: str) -> str:
    """What is typed at the terminal, hidden; raises Failure at Ctrl-D, KeyboardInterrupt at Ctrl-C."""
    here = threading.current_thread() is threading.main_thread()
    # asyncio's own handler would only mark the task as cancelled, and the terminal would be read on.
    before = signal.signal(signal.SIGINT, signal.default_int_handler) if here else None
    try:
        return getpass.getpass(prompt)
    except (EOFError, KeyboardInterrupt) as error:
        sys.stderr.write("\n")  # the prompt's line is left open
        if isinstance(error, EOFError):
            raise Failure("no password was typed") from None
        raise
    finally:
        if here:
            signal.signal(signal.SIGINT, before)
