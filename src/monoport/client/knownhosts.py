"""The cluster's SSH host CA in known_hosts files.

Belongs here: one `@cert-authority` line, and keeping exactly one of them in the user's own file.
Does not belong here: the agent (sshsetup.py), ssh's configuration (sshconfig.py).
"""

from collections.abc import Mapping
from pathlib import Path

from monoport.client import files
from monoport.client.names import Address
from monoport.client.profile import Home, Profile, user_home

SSH_PORT = 22  # which ssh leaves out of a name in known_hosts
MARK = "monoport:"  # begins the comment of a line that is ours; the cluster's name follows


def known_hosts_line(ca_line: str, patterns: str, comment: str = "") -> str:
    """One `@cert-authority` line.

    Args:
        ca_line: an authorized_keys line; its own comment is dropped.
        patterns: host patterns, joined with commas.
        comment: what stands behind the key.

    Source: sshd(8), SSH_KNOWN_HOSTS FILE FORMAT.
    """
    kind, key = ca_line.split()[:2]
    return f"@cert-authority {patterns} {kind} {key}" + (f" {comment}" if comment else "") + "\n"


def user_known_hosts(environment: Mapping[str, str]) -> Path:
    """The user's own known_hosts."""
    return user_home(environment) / ".ssh" / "known_hosts"


def trust_hosts(home: Home, path: Path, profile: Profile) -> None:
    """Keeps exactly one marked line for the cluster in known_hosts; every other line stays byte by byte.

    Args:
        home: whose lock keeps two logins from writing at once.
        path: the known_hosts file, made if it is missing.
        profile: whose cluster, and its host CAs (one line for each, while a CA is being replaced).
    """
    cluster = profile.cluster
    # the nodes, and the proxy's own SSH for `ssh -J`: at its ports alone, for sshd of that machine has other keys
    patterns = ",".join((f"*.{cluster}", f"[*.{cluster}]:*", *(_pattern(one) for one in profile.ssh_doors)))
    wanted = b"".join(known_hosts_line(line, patterns, MARK + cluster).encode() for line in profile.ssh_host_cas)
    _rewrite(home, path, cluster, wanted)


def forget_hosts(home: Home, path: Path, cluster: str) -> None:
    """Removes the cluster's marked line; a file that is not there stays so."""
    if path.exists():
        _rewrite(home, path, cluster, b"")


def _pattern(address: Address) -> str:
    return address.host if address.port == SSH_PORT else f"[{address.host}]:{address.port}"


def _rewrite(home: Home, path: Path, cluster: str, wanted: bytes) -> None:
    mark = (MARK + cluster).encode()
    with files.locked(home.path):
        files.make_folder(path.parent)
        before = path.read_bytes() if path.exists() else b""
        after, placed = bytearray(), False
        for line in _lines(before):
            if not _ours(line, mark):
                after += line
            elif not placed:
                after += wanted
                placed = True
        if wanted and not placed:
            if after and not after.endswith(b"\n"):
                after += b"\n"
            after += wanted
        if after != before:
            mode = path.stat().st_mode & 0o777 if path.exists() else files.PRIVATE_FILE
            files.replace(path, bytes(after), mode)


def _lines(content: bytes) -> list[bytes]:
    """Lines as ssh counts them: only a line feed ends one."""
    parts = content.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _ours(line: bytes, mark: bytes) -> bool:
    words = line.split()
    return len(words) == 5 and words[0] == b"@cert-authority" and words[4] == mark
