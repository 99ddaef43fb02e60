"""The pages: what this is and how to sign in, and the page for what is not here.

Belongs here: HTML. Does not belong here: HTTP, style (style.py). Every value from outside is escaped.
"""

from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from monoport import __version__
from monoport.protocols.description import Description
from monoport.proxy.web.site import Site
from monoport.proxy.web.style import STYLE

_MARK = (  # several lines in, one port, one line out
    '<svg viewBox="0 0 32 32" fill="none" stroke="{color}" stroke-width="2.6" stroke-linecap="round" '
    'aria-hidden="true"><path d="M3 7c7 0 7 9 12 9M3 16h12M3 25c7 0 7-9 12-9"/><path d="M24.5 16H29"/>'
    '<circle cx="19.5" cy="16" r="4.6"/></svg>'
)
_ICON = _MARK.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ').format(color="#0fa573")


@dataclass(frozen=True, slots=True)
class Command:
    """A line to be typed: words, and which of them the reader replaces or should look at."""

    words: tuple[str, ...]
    marked: tuple[str, ...] = ()

    def html(self) -> str:
        """The line, with what is marked set off; one click selects it all."""
        words = (f"<b>{escape(w)}</b>" if w in self.marked else f"<span>{escape(w)}</span>" for w in self.words)
        return f"<code>{' '.join(words)}</code>"


def login_command(site: Site) -> Command:
    """The exact command that signs in to this cluster."""
    pin = [f"--ca-pin={pin}" for pin in site.pins()[:1]]
    return Command(("tsh", "login", f"--proxy={site.address}", "--user=$USER", *pin), (*pin,))


def home(site: Site) -> str:
    """The page at `/`."""
    cluster = escape(site.cluster)
    use = [
        Command(("tsh", "ls")),
        Command(("tsh", "ssh", "LOGIN@NODE"), ("LOGIN@NODE",)),
        Command(("tsh", "db", "connect", "NAME"), ("NAME",)),
    ]
    body = f"""
<div class="page hero">
<h1>Everything in <em>{cluster}</em> is behind this one port.</h1>
<p class="lead">This is an identity-aware access proxy. Servers and databases have no open ports of their own:
sign in once, get a certificate that expires by itself, and use the {_programs(site)} you already know.</p>
</div>
<div class="page"><ol class="steps">
<li><div><h2>Get tsh</h2>
<p>The command for users. It comes with monoport and needs Python 3.11 or later;
in a copy of monoport&rsquo;s source:</p>
<pre>{Command(("pipx", "install", ".")).html()}</pre></div></li>
<li><div><h2>Sign in</h2>
<p>It asks for your password and writes a short-lived certificate. Your private key is made on your machine
and never leaves it.</p>
<pre>{login_command(site).html()}</pre>
<p class="small">{_pin_note(site)}</p></div></li>
<li><div><h2>Use it</h2>
<p>List what you may reach, then open it. <code>tsh config</code> prints the lines that let plain <code>ssh</code>,
<code>scp</code> and <code>sftp</code> do the same.</p>
<pre>{"".join(command.html() for command in use)}</pre></div></li>
</ol></div>
<section class="page through">
<h2>What goes through {escape(str(site.address))}</h2>
<p>The first bytes of a connection, the name and the protocols in its TLS greeting, decide where it goes.</p>
<dl>{"".join(f"<div><dt>{what}</dt><dd>{how}</dd></div>" for what, how in _routes(site))}</dl>
</section>"""
    return _page(site, f"{site.cluster} · monoport", body)


def not_found(site: Site, path: str) -> str:
    """The page for a path that is not here."""
    shown = path if len(path) <= 80 else path[:77] + "..."
    body = f"""
<div class="page hero">
<h1>There is nothing at <em>{escape(shown)}</em></h1>
<p class="lead">This port serves the cluster {escape(site.cluster)}. <a href="/">The first page</a> says what it is
and how to sign in. If you expected an application here, its name may be misspelt, or it may not be published yet.</p>
</div>
<section class="page through"><h2>Signing in</h2><pre>{login_command(site).html()}</pre></section>"""
    return _page(site, "Not found · monoport", body)


def _pin_note(site: Site) -> str:
    if site.certificate:
        return (
            "<code>--ca-pin</code> is the fingerprint of this cluster&rsquo;s own certificate authority. "
            "The command also works without it: this site&rsquo;s certificate is then what tsh verifies."
        )
    return (
        "<code>--ca-pin</code> is the fingerprint of this cluster&rsquo;s certificate authority. If your browser "
        "warned you about this page, compare it with what your administrator sees in <code>tctl status</code> "
        "before you type a password."
    )


def _routes(site: Site) -> list[tuple[str, str]]:
    rows = [("SSH", "<code>teleport-proxy-ssh</code>, spoken by tsh for you and for plain <code>ssh</code>")]
    for protocol in site.protocols.values():
        names = " or ".join(f"<code>{escape(alpn)}</code>" for alpn in (*protocol.alpn, *protocol.direct_alpn))
        rows.append((escape(protocol.title), names + _besides(protocol, site)))
    return [
        *rows,
        ("Agents", "<code>teleport-reversetunnel</code>: nodes and databases dial out to here and listen nowhere"),
        ("Control plane", f"<code>teleport-auth@{escape(site.cluster)}</code>, passed through untouched"),
        ("This page", "<code>http/1.1</code>, for browsers and health checks"),
    ]


def _besides(protocol: Description, site: Site) -> str:
    """How a protocol's clients come to this port with no tsh in between, if they can."""
    name = f"the server name <code>NAME.db.{escape(site.address.host)}</code>"
    if not protocol.routing.greets:
        return f", or {name}"
    if protocol.name in site.greets:
        return f", or nothing until the client is greeted, and then {name}"
    port = site.listeners.get(protocol.listen_key, "").rpartition(":")[2]
    return ", spoken by tsh" + (f"; its own clients have port <code>{escape(port)}</code>" if port else "")


def _programs(site: Site) -> str:
    """The programs that people know and go on using."""
    programs = ("ssh", *(protocol.shell.program for protocol in site.protocols.values()))
    *most, last = [f"<code>{escape(one)}</code>" for one in programs]
    return f"{', '.join(most)} and {last}"


def _page(site: Site, title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="robots" content="noindex"><title>{escape(title)}</title>
<link rel="icon" href="data:image/svg+xml,{quote(_ICON)}"><style>{STYLE}</style></head>
<body><header class="page">{_MARK.format(color="currentColor")}<b>monoport</b>
<span><i></i>{escape(site.cluster)}</span></header>
<main>{body}</main>
<footer><div class="page"><span>monoport {escape(__version__)}</span><a href="/webapi/ping">/webapi/ping</a>
<a href="/webapi/cas">/webapi/cas</a></div></footer></body></html>
"""
