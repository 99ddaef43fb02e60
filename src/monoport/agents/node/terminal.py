"""Pseudo-terminals: opening one with the modes and the size that an SSH client asks for.

Belongs here: RFC 4254 section 8 and termios. Not here: what runs on the terminal.
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from collections.abc import Mapping

Size = tuple[int, int, int, int]  # columns, rows, and both in pixels

_CHARACTERS = {
    1: termios.VINTR,
    2: termios.VQUIT,
    3: termios.VERASE,
    4: termios.VKILL,
    5: termios.VEOF,
    6: termios.VEOL,
    7: termios.VEOL2,
    8: termios.VSTART,
    9: termios.VSTOP,
    10: termios.VSUSP,
    12: termios.VREPRINT,
    13: termios.VWERASE,
    14: termios.VLNEXT,
    18: termios.VDISCARD,
}
_INPUT = {
    30: termios.IGNPAR,
    31: termios.PARMRK,
    32: termios.INPCK,
    33: termios.ISTRIP,
    34: termios.INLCR,
    35: termios.IGNCR,
    36: termios.ICRNL,
    38: termios.IXON,
    39: termios.IXANY,
    40: termios.IXOFF,
    41: termios.IMAXBEL,
    42: 0o040000,  # IUTF8 (RFC 8160), which the termios module does not name
}
_LOCAL = {
    50: termios.ISIG,
    51: termios.ICANON,
    53: termios.ECHO,
    54: termios.ECHOE,
    55: termios.ECHOK,
    56: termios.ECHONL,
    57: termios.NOFLSH,
    58: termios.TOSTOP,
    59: termios.IEXTEN,
    60: termios.ECHOCTL,
    61: termios.ECHOKE,
    62: termios.PENDIN,
}
_OUTPUT = {70: termios.OPOST, 72: termios.ONLCR, 73: termios.OCRNL, 74: termios.ONOCR, 75: termios.ONLRET}
_CONTROL = {92: termios.PARENB, 93: termios.PARODD}
_SIZES = {90: termios.CS7, 91: termios.CS8}
_DISABLED = 255  # the client's way to say that a key has no character


def open_terminal(size: Size, modes: Mapping[int, int]) -> tuple[int, int]:
    """Return master and slave of a new terminal; the master does not block. Raises OSError."""
    master, slave = os.openpty()
    try:
        set_modes(slave, modes)
        resize(master, size)
        os.set_blocking(master, False)
    except BaseException:
        os.close(master)
        os.close(slave)
        raise
    return master, slave


def set_modes(terminal: int, modes: Mapping[int, int]) -> None:
    """Set what the client said, and leave the rest as the kernel made it; unknown modes are passed over."""
    attributes = termios.tcgetattr(terminal)
    for part, flags in enumerate((_INPUT, _OUTPUT, _CONTROL, _LOCAL)):
        for mode, flag in flags.items():
            if mode in modes:
                attributes[part] = attributes[part] | flag if modes[mode] else attributes[part] & ~flag
    for mode, bits in _SIZES.items():
        if modes.get(mode):
            attributes[2] = attributes[2] & ~termios.CSIZE | bits
    for mode, index in _CHARACTERS.items():
        if mode in modes:
            value = modes[mode] & 0xFF
            attributes[6][index] = b"\0" if value == _DISABLED else bytes((value,))
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)


def resize(master: int, size: Size) -> None:
    """Tell the terminal its size; its foreground group gets SIGWINCH."""
    columns, rows, width, height = (min(value, 0xFFFF) for value in size)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, width, height))
