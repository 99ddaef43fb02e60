"""SASLprep: the one form of a password that a client and a server derive the same key from.

Belongs here: RFC 4013's profile for text beyond ASCII. Which mechanism asks for it knows `scram`.
Source: RFC 4013, RFC 3454; what PostgreSQL does with a password that the profile forbids
"""

import stringprep
import unicodedata

_FORBIDDEN = (
    stringprep.in_table_a1,  # not assigned in Unicode 3.2, where the profile stops
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def prepared(password: str) -> str:
    """Return the password as SASLprep writes it, or unchanged where the profile has no form for it.

    In the second case PostgreSQL and libpq take the bytes as they are: such passwords exist.
    """
    if password.isascii():
        return password
    mapped = "".join(
        " " if stringprep.in_table_c12(one) else one for one in password if not stringprep.in_table_b1(one)
    )
    if not mapped or any(forbidden(one) for one in mapped for forbidden in _FORBIDDEN) or _mixed(mapped):
        return password
    return unicodedata.normalize("NFKC", mapped)


def _mixed(text: str) -> bool:
    """Whether text that runs from right to left is mixed with what does not, RFC 3454 section 6."""
    if not any(map(stringprep.in_table_d1, text)):
        return False
    ends = stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])
    return not ends or any(map(stringprep.in_table_d2, text))
