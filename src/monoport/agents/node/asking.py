"""What sshd starts to ask the node's agent who may log in: AuthorizedPrincipalsCommand of sshd_config(5).

Belongs here: one question over a Unix socket. It is run by its path with `python -I -S`, on the way of every login, and
imports nothing else of this package. Without an answer nothing is printed, and sshd lets nobody in.
"""

import socket
import sys

SECONDS = 10.0  # the agent answers from memory and one write to disk
ANSWER = 1024  # bytes: a login


def ask(path: str, login: str, certificate: str) -> str:
    """The principal that sshd shall accept, "" for none.

    Args: the agent's socket, the account asked for, the certificate in base64 (%u and %k of sshd).
    Raises OSError: the agent does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        agent.settimeout(SECONDS)
        agent.connect(path)
        agent.sendall(f"{login} {certificate}\n".encode())
        agent.shutdown(socket.SHUT_WR)
        seen = b""
        while len(seen) < ANSWER and (more := agent.recv(ANSWER)):
            seen += more
    return seen.decode().strip()


if __name__ == "__main__":
    try:
        print(ask(*sys.argv[1:4]))
    except OSError as error:
        sys.exit(f"monoport's agent does not answer at {sys.argv[1]}: {error.strerror or error}")
