"""The configuration to paste on a host that joins: what `tctl tokens add` prints below a token.

Belongs here: this text. The keys are those of `monoport.config`, which reads it.
"""

from monoport import protocols
from monoport.auth.messages import MadeToken
from monoport.cli.tables import printable
from monoport.config import Config


def _database() -> str:
    """One database to begin with; a comment says what else there is."""
    first, *others = protocols.TABLE.values()
    more = ", ".join(f"{one.name} at localhost:{one.default_port}" for one in others)
    return (
        f"  - name: example\n    protocol: {first.name}{f'  # or {more}' if more else ''}\n"
        f"    uri: localhost:{first.default_port}\n"
    )


_SECTIONS = {
    "node": "ssh_service:\n  enabled: yes\n",
    "db": "db_service:\n  enabled: yes\n  databases:\n" + _database(),
    "proxy": "proxy_service:\n  enabled: yes\n  public_addr: ['proxy.example.com:443']\n",
}


def agent_config(token: MadeToken, config: Config) -> str:
    """A YAML file for a host that joins with the token; types that no service serves yet are named in comments."""
    lines = [
        "version: v3",
        "teleport:",
        "  data_dir: /var/lib/monoport",
        f"  {_server(token, config)}",
        f"  ca_pin: {token.ca_pin}",
        "  join_params:",
        "    method: token",
        f"    token_name: {_quoted(token.token)}",
    ]
    later = [one for one in token.types if one not in _SECTIONS]
    sections = [_section(one, token) for one in token.types if one in _SECTIONS]
    if later:
        lines.append(f"# no service of this version joins as: {', '.join(later)}")
    return "\n".join(lines) + "\n" + "".join(sections)


def _server(token: MadeToken, config: Config) -> str:
    """Where the host joins: by a proxy or, the first proxy of a cluster, by the auth service itself."""
    if config.public_addrs:
        return f"proxy_server: {config.public_addrs[0]}"
    own = config.auth_service.listen_addr
    if own is not None and "proxy" in token.types:
        return f"auth_server: AUTH.EXAMPLE.COM:{own.port}"
    return "proxy_server: PROXY.EXAMPLE.COM:443"


def _section(kind: str, token: MadeToken) -> str:
    """What turns a service on; of databases, those that the token names."""
    section = _SECTIONS[kind]
    if kind != "db" or not token.databases:
        return section
    head, example = section[: section.index("  - name")], section[section.index("  - name") :]
    return head + "".join(example.replace("example", name) for name in token.databases)


def _quoted(token: str) -> str:
    """A YAML scalar: drawn tokens as they are, unless all digits; others in double quotes."""
    if token.isascii() and token.isalnum() and token[0].isalpha():
        return token
    escaped = printable(token).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
