"""What PuTTY's programs need: a session, the key in PuTTY's own format, and trust in the cluster's host CA.

Belongs here: these files, as PuTTY 0.78 and later read them on Unix. Does not belong here: OpenSSH (sshconfig.py).

PuTTY knows OpenSSH certificates since 0.78: the user's by the setting DetachedCertificate, for which plink and psftp
have no option, so a session is loaded; hosts' by the host CAs that it keeps beside its sessions.
"""

import base64
import hashlib
import hmac
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from monoport.client import files
from monoport.client.keys import load
from monoport.client.profile import Home, Profile, UserFiles, user_home
from monoport.client.sshconfig import program
from monoport.client.vouching import Verdict, verdict
from monoport.errors import Failure

LINE = 64  # characters of base64 on a line of a key file
PROXY_COMMAND = 5  # ProxyMethod: a local command


def name(profile: Profile) -> str:
    """What the session and the host CA are called in PuTTY's lists."""
    return f"monoport-{profile.cluster}"


def folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where PuTTY keeps its settings (PuTTY's manual, appendix on Unix; the first that is there)."""
    named = environment.get("PUTTYDIR")
    if named:
        return Path(named).absolute()
    home = user_home(environment)
    xdg = Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "putty"
    return xdg if xdg.is_dir() else home / ".putty"


def set_up(home: Home, profile: Profile, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Write all three, and return lines that say how to go on.

    Raises:
        Failure: nothing vouches that the cluster's CA may speak for its hosts, or the login's key is missing.
    """
    profile.check()
    vouched = verdict(profile)
    if vouched not in {Verdict.RELATED, Verdict.PINNED}:
        why = "is too broad a name" if vouched is Verdict.BROAD else "is vouched for by no --ca-pin"
        raise Failure(f"{profile.cluster} {why}: PuTTY trusts a host CA everywhere, so it is not told of this one")
    paths, settings = home.keys(profile), folder(environment)
    write_key(paths)
    session, authority = _files(settings, profile)
    files.make_folder(session.parent)
    files.replace(session, _session(home, profile, environment).encode())
    files.make_folder(authority.parent)
    files.replace(authority, _authority(profile).encode())
    login, node = next(iter(profile.logins), "LOGIN"), f"NODE.{profile.cluster}"
    return [
        f"PuTTY's session {name(profile)} is in {session.parent}, and its trust in hosts in {authority.parent}",
        f"plink -load {name(profile)} {login}@{node} COMMAND",
        f"psftp -load {name(profile)} {login}@{node}",
    ]


def renew(home: Home, profile: Profile, environment: Mapping[str, str] = os.environ) -> None:
    """After a new login: write again what `set_up` wrote once, if it did."""
    paths = home.keys(profile)
    if _key(paths).exists():
        write_key(paths)
        _, authority = _files(folder(environment), profile)
        if authority.exists():
            files.replace(authority, _authority(profile).encode())


def tear_down(home: Home, profile: Profile, environment: Mapping[str, str] = os.environ) -> None:
    """Remove all three; what is not there stays so."""
    for path in (_key(home.keys(profile)), *_files(folder(environment), profile)):
        files.remove(path)


def write_key(paths: UserFiles) -> None:
    """Write the login's private key in PuTTY's format, version 3, unencrypted as the key beside it.

    Source: PuTTY's manual, appendix C "PPK file format".
    Raises:
        Failure: the key is missing or is none of ours.
    """
    try:
        pair = load(paths.key.read_text())
        private = load_pem_private_key(pair.private.encode(), None)
    except (OSError, ValueError) as error:
        raise Failure(f"{paths.key} cannot be read: {error}; log in again") from None
    if not isinstance(private, EllipticCurvePrivateKey):
        raise Failure(f"{paths.key} is not the key of a login; log in again")
    kind, public_text = pair.ssh_public.split()[:2]
    public, comment = base64.b64decode(public_text), paths.user
    secret = _mpint(private.private_numbers().private_value)
    signed = b"".join(map(_string, (kind.encode(), b"none", comment.encode(), public, secret)))
    # Without a passphrase the MAC has an empty key; it guards against damage alone.
    mac = hmac.new(b"", signed, hashlib.sha256).hexdigest()
    lines = [f"PuTTY-User-Key-File-3: {kind}", "Encryption: none", f"Comment: {comment}"]
    for what, blob in (("Public", public), ("Private", secret)):
        text = base64.b64encode(blob).decode()
        parts = [text[at : at + LINE] for at in range(0, len(text), LINE)]
        lines += [f"{what}-Lines: {len(parts)}", *parts]
    files.replace(_key(paths), "\n".join([*lines, f"Private-MAC: {mac}", ""]).encode())


def _session(home: Home, profile: Profile, environment: Mapping[str, str]) -> str:
    paths = home.keys(profile)
    words = [*program(), "proxy", "ssh", f"--proxy={profile.proxy}", f"--cluster={profile.cluster}"]
    if home.path != user_home(environment) / ".tsh":
        words = ["env", f"TSH_HOME={home.path}", *words]
    # PuTTY reads % and \ in the command by itself, then a shell reads what comes of it
    command = shlex.join(words).replace("\\", "\\\\").replace("%", "%%")
    settings = {
        "Protocol": "ssh",
        "PortNumber": 22,  # psftp says 0 without it; the node's own is used anyway
        "ProxyMethod": PROXY_COMMAND,
        # the host is anybody's word, as a submodule's address: a shell reads nothing into lines of a here-document
        "ProxyTelnetCommand": f"{command} \"$(cat <<'HOST'\\n%host:%port\\nHOST\\n)\"",
        "PublicKeyFile": _key(paths),
        "DetachedCertificate": paths.ssh_certificate,
        "SshProt": 3,  # SSH-2 alone
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def _authority(profile: Profile) -> str:
    """One host CA; PuTTY keeps one key under one name, so while a CA is being replaced the newest counts."""
    key = profile.ssh_host_cas[-1].split()[1]
    return f"PublicKey={key}\nValidity=*.{profile.cluster}\nPermitRSASHA1=0\nPermitRSASHA256=1\nPermitRSASHA512=1\n"


def _files(settings: Path, profile: Profile) -> tuple[Path, Path]:
    file = re.sub(r"[^A-Za-z0-9+.@_-]", lambda found: f"%{ord(found[0]):02X}", name(profile))
    return settings / "sessions" / file, settings / "sshhostcas" / file


def _key(paths: UserFiles) -> Path:
    return paths.folder / f"{paths.user}.ppk"


def _string(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def _mpint(value: int) -> bytes:
    """RFC 4251 section 5."""
    return _string(value.to_bytes(value.bit_length() // 8 + 1, "big"))
