"""Option files, as `~/.my.cnf` is one: `key=value` lines.

Belongs here: quoting one value. Which lines there are is for whoever writes a file.
Source: https://dev.mysql.com/doc/refman/8.4/en/option-files.html
"""

import re

_PLAIN = re.compile(r"[A-Za-z0-9_.,:;@%+/~-]+", re.ASCII)


def quoted(value: str) -> str:
    """The value as it stands in an option file: in double quotes unless it is plain, as `#` begins a comment."""
    if _PLAIN.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
