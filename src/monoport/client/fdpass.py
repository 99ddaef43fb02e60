"""Run by ssh as its ProxyCommand, with ProxyUseFdpass: fetches a connected socket from `tsh ssh` and hands it over.

Belongs here: this one act, in a program that starts in milliseconds; it imports nothing of monoport.
Usage: python -I -S fdpass.py SOCKET HOST PORT. Source: ssh_config(5), ProxyUseFdpass.
"""

import socket
import sys


def main(path: str, host: str, port: str) -> None:
    """Connects to the socket, says which node it is for, and passes the descriptor on over standard output."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    connection.sendall(f"{host} {port}\n".encode())
    with socket.socket(fileno=1) as output:
        socket.send_fds(output, [b"\0"], [connection.fileno()])


if __name__ == "__main__":
    main(*sys.argv[1:])
