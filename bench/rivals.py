"""The proxies under test: how each is started with the same certificate, names and backends.

Belongs here: configurations and processes of monoport's door, HAProxy and nginx. Does not belong here: measuring.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pki import CLUSTER, Pki

HERE = Path(__file__).parent
PROXY_CORE, LOAD_CORE = "0", "1"
SSH, AUDITED = "teleport-proxy-ssh", "teleport-reversetunnel"
DATABASE, AUTH = "teleport-postgres", f"teleport-auth@{CLUSTER}"
NGINX_STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the backends listen (three in a row) and the proxy: TLS, TLS with client certificates, passed through."""

    backends: int
    tls: int
    mutual: int
    passed: int


@dataclass(slots=True)
class Rival:
    """A running proxy."""

    name: str
    ports: Ports
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End it and wait for that."""
        self.process.terminate()
        self.process.wait(10)


_next = 20000 + os.getpid() % 5000


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on and nobody was told before."""
    global _next  # noqa: PLW0603  one process, one run
    for first in range(_next, 60000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        _next = first + count
        return first
    raise SystemExit("bench: no free ports")


def missing() -> dict[str, str]:
    """The rivals that cannot be started here, and what would help."""
    lacks = {}
    if shutil.which("haproxy") is None:
        lacks["haproxy"] = "apt-get install haproxy"
    if shutil.which("nginx") is None or not NGINX_STREAM.exists():
        lacks["nginx"] = "apt-get install nginx libnginx-mod-stream"
    return lacks


def start(name: str, pki: Pki, folder: Path, backends: int) -> Rival:
    """Start the proxy `name` on its own core, ready to serve when this returns."""
    first = free_ports(3)
    same = name == "monoport"
    ports = Ports(backends, first, first if same else first + 1, first if same else first + 2)
    command = {"monoport": _monoport, "haproxy": _haproxy, "nginx": _nginx}[name](pki, folder, ports)
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(["taskset", "-c", PROXY_CORE, *command], stdout=log, stderr=log)
    for port in {ports.tls, ports.mutual, ports.passed}:
        wait(port, process, folder / f"{name}.log")
    return Rival(name, ports, process)


def wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise SystemExit(f"bench: it ended at once: {log.read_text()[-500:]}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"bench: nothing listens on port {port}")


def _monoport(pki: Pki, _folder: Path, ports: Ports) -> list[str]:
    return [sys.executable, str(HERE / "door.py"), str(pki.folder), str(ports.backends), str(ports.tls)]


def _haproxy(pki: Pki, folder: Path, ports: Ports) -> list[str]:
    asked = f"ca-file {pki.user_ca} verify optional ssl-min-ver TLSv1.3"
    fronts = f"""
frontend tls
    bind 127.0.0.1:{ports.tls} ssl crt {pki.both} alpn {SSH},{AUDITED} ssl-min-ver TLSv1.3
    use_backend sink if {{ ssl_fc_sni sink.localhost }}
    use_backend source if {{ ssl_fc_sni source.localhost }}
    default_backend echo
frontend mutual
    bind 127.0.0.1:{ports.mutual} ssl crt {pki.both} alpn {DATABASE} {asked}
    tcp-request content set-var(sess.user) ssl_c_s_dn(cn)
    default_backend echo
frontend passed
    bind 127.0.0.1:{ports.passed}
    option splice-auto
    tcp-request inspect-delay 5s
    tcp-request content accept if {{ req_ssl_hello_type 1 }}
    use_backend sink if {{ req_ssl_sni sink.localhost }}
    use_backend source if {{ req_ssl_sni source.localhost }}
    default_backend echo
"""
    backs = "".join(
        f"backend {name}\n    server one 127.0.0.1:{ports.backends + offset}\n"
        for offset, name in enumerate(("echo", "sink", "source"))
    )
    config = folder / "haproxy.cfg"
    config.write_text(
        "global\n    nbthread 1\n    maxconn 4000\n"
        "defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n"
        + fronts
        + backs
    )
    return ["haproxy", "-db", "-f", str(config)]


def _nginx(pki: Pki, folder: Path, ports: Ports) -> list[str]:
    certificate = f"ssl_certificate {pki.certificate}; ssl_certificate_key {pki.key}; ssl_protocols TLSv1.3;"
    config = folder / "nginx.conf"
    config.write_text(f"""
load_module {NGINX_STREAM};
daemon off; master_process off; user root; pid {folder}/nginx.pid; error_log {folder}/nginx.err;
worker_rlimit_nofile 20000;
events {{ worker_connections 19000; }}
stream {{
    map $ssl_server_name $chosen {{ sink.localhost 127.0.0.1:{ports.backends + 1};
        source.localhost 127.0.0.1:{ports.backends + 2}; default 127.0.0.1:{ports.backends}; }}
    map $ssl_preread_server_name $seen {{ sink.localhost 127.0.0.1:{ports.backends + 1};
        source.localhost 127.0.0.1:{ports.backends + 2}; default 127.0.0.1:{ports.backends}; }}
    proxy_timeout 1h;
    server {{ listen 127.0.0.1:{ports.tls} ssl backlog=4096; {certificate} ssl_alpn {SSH} {AUDITED};
        proxy_pass $chosen; }}
    server {{ listen 127.0.0.1:{ports.mutual} ssl backlog=4096; {certificate} ssl_alpn {DATABASE};
        ssl_verify_client optional; ssl_client_certificate {pki.user_ca}; proxy_pass $chosen; }}
    server {{ listen 127.0.0.1:{ports.passed} backlog=4096; ssl_preread on; proxy_pass $seen; }}
}}
""")
    return ["nginx", "-c", str(config), "-e", f"{folder}/nginx.err"]
