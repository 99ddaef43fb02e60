"""`tctl auth sign` and `tctl auth export`: certificates without a login, and the cluster's CAs.

Belongs here: options and words of these commands. Keys are made here, on this machine; only public keys go to the
auth service.
"""

import textwrap
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path

import click

from monoport.auth import keys
from monoport.auth.authorities import TrustedCas
from monoport.auth.client import AuthClient
from monoport.auth.messages import Certificate, UserCertificates
from monoport.cli.beside import Beside, pass_beside
from monoport.cli.options import DURATION, names_option
from monoport.cli.run import Group
from monoport.cli.tables import cell, printable
from monoport.errors import Failure

EXPORTS = {
    "user": "OpenSSH user CA, for sshd's TrustedUserCAKeys",
    "host": "OpenSSH host CA",
    "known_hosts": "the same as a line for known_hosts",
    "openssh": "how a host's own sshd becomes a node, step by step",
    "tls-user": "X.509 user CA, PEM",
    "tls-host": "X.509 host CA, PEM",
    "db": "X.509 CA of database servers, PEM",
    "db-client": "X.509 CA of the agents' certificates to databases, PEM",
}
RECIPE = """\
# The own sshd of a host as a node of the cluster {cluster}. On that host, as root:
#
# 1. Join it as any node (`tctl tokens add --type=node` prints the configuration), with
#        ssh_service:
#          enabled: yes
#          openssh: yes
#    The agent then only relays to sshd on 127.0.0.1:22. Into DATA_DIR/openssh it writes the user CA, a certificate for
#    /etc/ssh/ssh_host_ed25519_key that it renews, and the settings for sshd.
# 2. Have sshd read them, from the folder data_dir that is yours:
#        echo 'Include /var/lib/monoport/openssh/sshd.conf' > /etc/ssh/sshd_config.d/monoport.conf
#        sshd -t && systemctl reload ssh
# 3. From version 9.8 on, sshd reads a renewed certificate when it is reloaded: do that once a day.
#
# For every login sshd asks the agent, which answers by roles and locks, and only for connections that came through the
# proxy. The user CA, as it stands in DATA_DIR/openssh/user-ca.pub:
{authority}"""


@click.group(cls=Group)
def auth() -> None:
    """Certificates and their authorities."""


@auth.command()
@click.option("--user", metavar="NAME", help="Certificates for this user.")
@click.option(
    "--format", "kind", type=click.Choice(("user", "db")), default="user", help="For a user or a database server."
)
@names_option("--host", "hosts", metavar="HOST,..", help="Names and addresses of the database server.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="A folder (user), or what file names begin with (db)."
)
@click.option("--ttl", type=DURATION, help="How long they are good; a user's roles set the longest.")
@pass_beside
def sign(  # noqa: PLR0917 - click passes every option by its name
    beside: Beside, user: str | None, kind: str, hosts: tuple[str, ...], out: Path, ttl: timedelta | None
) -> None:
    """Sign certificates without a login, for keys that are made now."""
    if kind == "db":
        if not hosts or user is not None:
            raise Failure("--format=db takes --host=HOST[,HOST] and no --user")
        _sign_database(beside, hosts, out, ttl)
        return
    if user is None or hosts:
        raise Failure("expected --user=NAME, or --format=db --host=HOST[,HOST]")
    _sign_user(beside, user, out, ttl)


def _sign_user(beside: Beside, user: str, folder: Path, ttl: timedelta | None) -> None:
    pair = keys.generate()

    async def ask(client: AuthClient) -> UserCertificates:
        return await client.sign_user(user, pair.public, pair.ssh_public, ttl)

    signed = beside.ask(ask)
    files = {
        user: pair.private,
        f"{user}-x509.pem": signed.certificate,
        f"{user}-cert.pub": signed.ssh_certificate.rstrip("\n") + "\n",
        "certs.pem": "".join(signed.cas.host),
        "known_hosts": _export(signed.cas, "known_hosts"),
    }
    for name, text in files.items():
        keys.write_private(folder / name, text)
    click.echo(f"{folder}: {', '.join(printable(name) for name in files)}, good until {cell(signed.expires)}")


def _sign_database(beside: Beside, hosts: Sequence[str], prefix: Path, ttl: timedelta | None) -> None:
    pair = keys.generate()

    async def ask(client: AuthClient) -> Certificate:
        return await client.sign_database_server(hosts, pair.public, ttl)

    signed = beside.ask(ask)
    key, certificate, cas, bundle = (
        prefix.with_name(prefix.name + suffix) for suffix in (".key", ".crt", ".cas", ".pem")
    )
    keys.write_private(key, pair.private)
    certificate.write_text(signed.certificate)
    cas.write_text(_lines(signed.cas.dbclient))
    click.echo(f"{certificate}, {key} and {cas} are written, good until {cell(signed.expires)}")
    files = {"certificate": certificate, "key": key, "cas": cas, "bundle": bundle}
    paths = {name: path.absolute() for name, path in files.items()}
    for protocol in beside.config.protocols.values():
        if protocol.server:
            text = protocol.server.format(cluster=signed.cas.cluster, **paths)
            click.echo(f"\n{protocol.title}\n{textwrap.indent(text, '  ')}", nl=False)


@auth.command()
@click.option(
    "--type",
    "kind",
    type=click.Choice(tuple(EXPORTS)),
    default="user",
    show_default=True,
    help="; ".join(f"{name}: {what}" for name, what in EXPORTS.items()),
)
@pass_beside
def export(beside: Beside, kind: str) -> None:
    """Print the public part of one of the cluster's CAs."""

    async def ask(client: AuthClient) -> TrustedCas:
        return await client.cas()

    click.echo(_export(beside.ask(ask), kind), nl=False)


def _export(cas: TrustedCas, kind: str) -> str:
    match kind:
        case "user":
            return _lines(cas.ssh_user)
        case "host":
            return _lines(cas.ssh_host)
        case "openssh":
            return RECIPE.format(cluster=cas.cluster, authority=_lines(f"#        {line}" for line in cas.ssh_user))
        case "known_hosts":
            return _lines([f"@cert-authority *.{cas.cluster},{cas.cluster} {line}" for line in cas.ssh_host])
        case "tls-user":
            return _lines(cas.user)
        case "tls-host":
            return _lines(cas.host)
        case "db":
            return _lines(cas.db)
        case "db-client":
            return _lines(cas.dbclient)
        case _:
            raise AssertionError(f"no export of {kind}")


def _lines(texts: Iterable[str]) -> str:
    return "".join(text.rstrip("\n") + "\n" for text in texts)
