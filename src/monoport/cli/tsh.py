"""`tsh`, the user's command: arguments in, calls, and what they return printed.

Belongs here: options and words. No logic: that is in `client/`. Imports are inside the commands, because ssh starts
this program once per connection and `tsh proxy ssh` needs few of them.
"""
# ruff: noqa: PLC0415, PLR0917 - click passes every option by its name

import sys
from typing import TYPE_CHECKING

import click

from monoport.cli import tsh_databases, tsh_recordings
from monoport.cli.run import Group, run, wait, warn
from monoport.cli.tsh_options import format_option, proxy_option
from monoport.client.profile import Home, Profile

if TYPE_CHECKING:
    from monoport.client.front import Front

_PASS = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def main() -> None:
    """The console script."""
    run(tsh)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="monoport", message="%(version)s")
def tsh() -> None:
    """Reach servers and databases through a monoport proxy."""


def _front(profile: Profile) -> "Front":
    from monoport.client.front import Front

    return Front(profile)


# --- the login


@tsh.command()
@click.option("--proxy", metavar="HOST:PORT", envvar="TSH_PROXY", help="Where; the current proxy if not given.")
@click.option("--user", metavar="NAME", help="As whom; as last time, or your name on this machine, if not given.")
@click.option("--ca-pin", metavar="sha256:HEX", default="", help="The cluster's CA, as `tctl status` shows it.")
@click.option("--insecure", is_flag=True, help="Do not verify the proxy's certificate. For trying things out.")
@click.option("--ttl", metavar="TIME", help="How long, such as 90m or 8h; as long as your roles allow if not given.")
@click.option("--no-ssh-setup", is_flag=True, help="Leave ssh-agent and ~/.ssh/known_hosts alone.")
def login(
    proxy: str | None, user: str | None, ca_pin: str, insecure: bool, ttl: str | None, no_ssh_setup: bool
) -> None:
    """Log in. The password is asked at a terminal, else it is the first line of standard input."""
    from monoport.cli.password import read_password
    from monoport.cli.progress import noting
    from monoport.client.session import Wanted, sign_in

    if ca_pin and insecure:
        raise click.UsageError("--ca-pin and --insecure exclude each other")
    wanted = Wanted(proxy, user, ca_pin, insecure, ttl, ssh_setup=not no_ssh_setup)
    home = Home.of()
    profile = wait(sign_in(home, wanted, read_password, warn, busy=noting))
    _print_profile(home, profile)


@tsh.command()
@proxy_option
@click.option("--all", "everything", is_flag=True, help="From every proxy.")
def logout(proxy: str | None, everything: bool) -> None:
    """Remove your keys and certificates from this machine."""
    from monoport.client.session import sign_out

    home = Home.of()
    profiles = list(home.profiles()) if everything else [home.choose(proxy)]
    for profile in profiles:
        wait(sign_out(home, profile, warn))
        click.echo(f"logged out of {profile.cluster} at {profile.proxy}")


@tsh.command()
@format_option
def status(output: str) -> None:
    """Who you are, where, and for how long."""
    from monoport.cli.tables import TABLES, document, plain
    from monoport.client.session import describe
    from monoport.errors import Failure

    home = Home.of()
    rows = [describe(home, profile) for profile in home.profiles()]
    if output not in TABLES:
        sys.stdout.write(document([plain(row) for row in rows], output))
        return
    if not rows:
        raise Failure("not logged in: tsh login --proxy=HOST:PORT --user=NAME")
    for number, profile in enumerate(home.profiles()):
        if number:
            click.echo()
        _print_profile(home, profile)


def _print_profile(home: Home, profile: Profile) -> None:
    from monoport.cli.tables import cell
    from monoport.client.session import describe

    row = describe(home, profile)
    current = "" if row["current"] else "  (not the current one)"
    click.echo(f"user       {cell(row['user'])}@{cell(row['cluster'])}")
    click.echo(f"proxy      {row['proxy']}{current}")
    click.echo(f"roles      {cell(row['roles']) or '(none)'}")
    click.echo(f"logins     {cell(row['logins']) or '(none)'}")
    if row["databases"]:
        click.echo(f"databases  {cell(row['databases'])}")
    click.echo(f"ca pin     {cell(row['ca_pin'])}")
    click.echo(f"until      {cell(row['expires'])}{'  EXPIRED: ' + profile.login_again() if row['expired'] else ''}")


# --- nodes


@tsh.command("ls")
@proxy_option
@format_option
def list_nodes(proxy: str | None, output: str) -> None:
    """The servers that you may log in to."""
    from monoport.cli.progress import wait_noting
    from monoport.cli.tables import Column, show
    from monoport.client.nodes import nodes

    home = Home.of()
    profile = home.choose(proxy)
    rows = wait_noting(nodes(home, profile), f"asking {profile.proxy}")
    columns = (Column("Node", "name", "bold", whole=True), Column("Id", "id", rank=2, whole=True))
    show(rows, (*columns, Column("Labels", "labels", rank=1)), output)


@tsh.command(context_settings=_PASS, short_help="Run a shell or a command on a server.")
@proxy_option
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF ssh] [LOGIN@]HOST [COMMAND]...")
def ssh(proxy: str | None, words: tuple[str, ...]) -> int:
    """Run a shell or a command on a server, with the options of ssh(1). Its exit status is the command's own."""
    from monoport.cli.progress import noting
    from monoport.client.background import in_background
    from monoport.client.nodes import run_ssh
    from monoport.client.words import ssh_words

    home = Home.of()
    profile = _chosen(home, proxy, words)
    if "-f" in ssh_words(words).options:
        return in_background(lambda let_go: wait(run_ssh(home, profile, words, report=warn, background=let_go)))
    return wait(run_ssh(home, profile, words, report=warn, busy=noting))


@tsh.command(context_settings=_PASS, short_help="Copy files to and from servers.")
@proxy_option
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF scp] SOURCE... DESTINATION")
def scp(proxy: str | None, words: tuple[str, ...]) -> int:
    """Copy files to and from servers, with the options of scp(1): tsh scp -r site/ alice@web:/srv/."""
    from monoport.cli.progress import noting
    from monoport.client.nodes import run_scp

    home = Home.of()
    return wait(run_scp(home, _chosen(home, proxy, words), words, report=warn, busy=noting))


def _chosen(home: Home, proxy: str | None, words: tuple[str, ...]) -> Profile:
    """The profile for the first word that names a node of one of several clusters."""
    hosts = (word.partition(":")[0].rpartition("@")[2] for word in words if not word.startswith("-"))
    return home.choose(proxy, next(hosts, ""))


@tsh.command()
@proxy_option
@click.option("--putty", is_flag=True, help="Write PuTTY's files instead: a session, your key, trust in the hosts.")
def config(proxy: str | None, putty: bool) -> None:
    """Print the block of ~/.ssh/config by which plain ssh, scp and sftp reach your servers."""
    from monoport.client.sshconfig import ssh_config

    home = Home.of()
    if putty:
        from monoport.client import putty as client_putty

        for line in client_putty.set_up(home, home.choose(proxy)):
            click.echo(line)
        return
    click.echo(ssh_config(home, home.choose(proxy)), nl=False)


# --- local ends


@tsh.group(cls=Group)
def proxy() -> None:
    """Local ends for other programs."""


@proxy.command("ssh", short_help="For OpenSSH's ProxyCommand: standard input and output become a server's.")
@proxy_option
@click.option("--user", "login", metavar="LOGIN", default="", help="The login on the server: %r of ssh.")
@click.option("--cluster", metavar="NAME", default="", help="The cluster that the server is in.")
@click.option("--listen", "listen_on", metavar="ADDR:PORT", help="Serve a local port instead, until Ctrl-C.")
@click.option("--tunnel", is_flag=True, help="Present your certificate there: clients of the port need none.")
@click.option("--share-identity", is_flag=True, help="Let --tunnel listen beyond loopback: who connects is you.")
@click.argument("target", required=False, metavar="HOST[:PORT]")
def proxy_ssh(
    proxy: str | None,
    login: str,
    cluster: str,
    listen_on: str | None,
    tunnel: bool,
    share_identity: bool,
    target: str | None,
) -> None:
    """For OpenSSH's ProxyCommand: ssh -o "ProxyCommand tsh proxy ssh --user=%r %h:%p" alice@node.example.com."""
    from monoport.cli.startup import importing

    with importing():
        from monoport.client import ssh as client_ssh
        from monoport.errors import Failure

    if target is None:
        raise Failure(client_ssh.FORM)
    home = Home.of()
    wanted = client_ssh.Target.parse(target, login)
    profile = home.choose(proxy, wanted.host)
    client_ssh.own_cluster(profile, cluster)
    if listen_on is not None:
        from monoport.client import sshlocal

        local = sshlocal.Local(wanted, listen_on, tunnel, share_identity)
        wait(sshlocal.serve(home, proxy, local, announce=click.echo, report=warn))
        return
    if tunnel or share_identity:
        raise click.UsageError("--tunnel and --share-identity go with --listen")
    wait(client_ssh.proxy_ssh(_front(profile), home.keys(profile), wanted))


proxy.add_command(tsh_databases.proxy_db)
proxy.add_command(tsh_databases.proxy_all)
tsh.add_command(tsh_databases.db)
tsh.add_command(tsh_recordings.recordings)
tsh.add_command(tsh_recordings.play)


if __name__ == "__main__":
    main()
