"""Starting quickly: what ssh waits for at every connection through `tsh proxy ssh`.

Belongs here: how the libraries of a program that starts so often are imported. Not here: which ones, its file says.
"""

import ctypes.util
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Around the imports of `tsh proxy ssh`, on its only thread.

    asyncssh looks for libnettle and liboqs, for a MAC and a key exchange that monoport never offers
    (`tunnel.link.algorithms`); `ctypes.util` does so by running ldconfig, and gcc and ld where they are installed.
    Here they are not found, at once. And the garbage of imports is next to nothing, but looking for it is not.
    """
    search, collecting = ctypes.util.find_library, gc.isenabled()
    ctypes.util.find_library = _not_searched
    gc.disable()
    try:
        yield
    finally:
        ctypes.util.find_library = search
        gc.freeze()
        if collecting:
            gc.enable()


def _not_searched(name: str) -> str | None:
    return None
