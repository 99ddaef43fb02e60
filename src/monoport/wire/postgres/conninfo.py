"""libpq's connection strings: `keyword=value` words.

Belongs here: quoting one value. Which words there are is for whoever writes a string.
Source: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-KEYWORD-VALUE
"""

import re

_PLAIN = re.compile(r"[A-Za-z0-9_.,:;@%+/~-]+", re.ASCII)


def quoted(value: str) -> str:
    """The value as it stands in a connection string: in single quotes unless it is plain."""
    if _PLAIN.fullmatch(value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
