"""The words of `tsh ssh` and `tsh scp`, which are those of ssh(1) and scp(1).

Belongs here: telling options, nodes and remote commands apart. Does not belong here: what they mean, running anything.
"""

import getopt
from collections.abc import Sequence
from dataclasses import dataclass

from monoport.errors import Failure

SSH_OPTIONS = "1246ab:c:e:fgi:kl:m:no:p:qstvxyACD:E:F:GI:KL:MNO:P:Q:R:S:TVw:W:XYB:"  # ssh(1) without -J
SCP_OPTIONS = "346ABCD:F:OP:RS:TX:c:i:l:o:pqrsv"  # scp(1), without -J


@dataclass(frozen=True, slots=True)
class SshWords:
    """Options as given, the node, the login asked for (empty: none), the remote command's words."""

    options: tuple[str, ...]
    host: str
    login: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScpWords:
    """Options as given, the source and destination words, and the nodes and logins in them."""

    options: tuple[str, ...]
    paths: tuple[str, ...]
    hosts: tuple[str, ...]
    logins: tuple[str, ...]


def ssh_words(words: Sequence[str]) -> SshWords:
    """Reads `[options] [login@]host [options] [command...]`.

    Raises:
        Failure: no host, or an option that ssh has not got.
    """
    options, rest = _getopt(words, SSH_OPTIONS)
    if not rest:
        raise Failure("which node? tsh ssh [LOGIN@]HOST [COMMAND]")
    login, _, host = rest[0].rpartition("@")
    more, command = _getopt(rest[1:], SSH_OPTIONS)
    options += more
    named = [value for option, value in options if option == "-l"]
    plain = tuple(word for option, value in options if option != "-l" for word in _word(option, value))
    return SshWords(plain, _host(host), login or (named[0] if named else ""), tuple(command))


def scp_words(words: Sequence[str]) -> ScpWords:
    """Reads `[options] source... destination`, each a local path or `[login@]host:path`.

    Raises:
        Failure: fewer than two paths, or none on a node.
    """
    options, paths = _getopt(words, SCP_OPTIONS)
    if len(paths) < 2:
        raise Failure("from where to where? tsh scp [-r] SOURCE... DESTINATION, one of them LOGIN@HOST:PATH")
    remote = [path.partition(":")[0] for path in paths if _is_remote(path)]
    if not remote:
        raise Failure("neither source nor destination is on a node: write it as LOGIN@HOST:PATH")
    logins = tuple(each.rpartition("@")[0] for each in remote)
    hosts = tuple(_host(each.rpartition("@")[2]) for each in remote)
    return ScpWords(tuple(word for pair in options for word in _word(*pair)), tuple(paths), hosts, logins)


def with_login(path: str, login: str) -> str:
    """A path of scp with a login in it, if it is on a node and names none."""
    return f"{login}@{path}" if _is_remote(path) and "@" not in path.partition(":")[0] else path


def pick_login(asked: str, allowed: Sequence[str], local_user: str) -> str:
    """The login to use on a node.

    Args:
        asked: what the user wrote; empty if nothing.
        allowed: the logins in the user's certificate.
        local_user: the user's name on this machine.

    Raises:
        Failure: it is not one of the user's, or nothing was asked for and it cannot be told which.
    """
    if asked:
        if asked not in allowed:
            raise Failure(f"login {asked!r} is not one of yours: {', '.join(allowed) or 'your roles allow none'}")
        return asked
    if local_user in allowed:
        return local_user
    if len(allowed) == 1:
        return allowed[0]
    if not allowed:
        raise Failure("your roles allow no login on any node")
    raise Failure(f"as whom? your logins are {', '.join(allowed)}: write LOGIN@HOST")


def _is_remote(path: str) -> bool:
    """As scp decides: a colon before the first slash, and something before the colon."""
    before = path.partition("/")[0]
    return ":" in before and not before.startswith(":")


def _host(host: str) -> str:
    if not host or host.startswith("-"):
        raise Failure(f"{host!r} is not a node's name")
    return host


def _word(option: str, value: str) -> tuple[str, ...]:
    return (option, value) if value else (option,)


def _getopt(words: Sequence[str], known: str) -> tuple[list[tuple[str, str]], list[str]]:
    try:
        return getopt.getopt(list(words), known)
    except getopt.GetoptError as error:
        raise Failure(str(error)) from None
