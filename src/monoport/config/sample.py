"""The sample configuration that `monoport configure` prints.

Belongs here: the text. Lines that begin with "# " are prose; lines that begin with "#" alone are keys that can be
switched on by taking the "#" away. A test takes every one of them away and loads the result.
"""

import socket

from monoport.config.model import default_nodename

_TEXT = """\
# Configuration of monoport. Start it with: monoport start -c FILE
# Every key, with its default, is in docs/configuration.md.

# v2 and v3 listen on the one port and on what is named below, nothing else.
version: v3

teleport:
  # This host's name in the cluster: lower-case letters, digits and hyphens.
  #nodename: {node}
  # State, keys and certificates of this daemon.
  data_dir: /var/lib/monoport
  log:
    # debug, info, warn or error
    severity: info
    # text or json
    format: text
  # Metrics and health (docs/operations.md). No authentication: loopback, or a management network.
  #diag_addr: 127.0.0.1:3000
  # Where the audit log cannot be written: refuse new sessions, or continue unrecorded.
  #audit:
    #on_failure: refuse
  # Where the auth service keeps its state: auth.db in data_dir.
  #storage:
    #type: sqlite

# The front door: one TLS port for users, agents, browsers and databases.
proxy_service:
  enabled: yes
  web_listen_addr: 0.0.0.0:3080
  # How clients reach the port from outside; the first one is canonical. A string or a list.
  public_addr: ["{host}:3080"]
  # Certificates for browsers. Without any, the cluster's own CA signs one, and tsh login takes --ca-pin.
  # They are reread when the files change.
  #https_keypairs:
    #- key_file: /etc/monoport/privkey.pem
      #cert_file: /etc/monoport/fullchain.pem
  # Separate ports for clients that cannot use the one port.
  #listen_addr: 0.0.0.0:3023
  #tunnel_listen_addr: 0.0.0.0:3024
  #postgres_listen_addr: 0.0.0.0:5432
  #mysql_listen_addr: 0.0.0.0:3036
  #mongo_listen_addr: 0.0.0.0:27017
  # Speak MySQL on the one port to clients that have said nothing for so long: each of them waits as long.
  #mysql_on_silence: 1s
  # Load balancers in front of the port that send a PROXY header: theirs is believed, anybody else's is refused.
  #proxy_protocol:
    #networks: [10.0.0.5, 10.0.0.6]
  #limits:
    #connections: 8192
    #per_source: 512

# Users, roles and certificate authorities. On where a proxy is and no other auth service is named.
auth_service:
  # The cluster's name cannot change later. By default it is the host of the first public_addr.
  #cluster_name: {host}
  # A port of its own for the auth API; without it, the API is reached through the one port only.
  #listen_addr: 0.0.0.0:3025
  proxy_listener_mode: multiplex
  authentication:
    type: local
    second_factor: "off"

# This host as an SSH node. It listens nowhere: the proxy reaches it through the reverse tunnel.
ssh_service:
  enabled: no
  #labels:
    #env: prod

# The agent beside databases.
db_service:
  enabled: no
  #databases:
    #- name: orders
      #protocol: postgres
      #uri: localhost:5432
      #static_labels:
        #env: prod
      # How the agent verifies the server: verify-full, verify-ca or insecure.
      #tls:
        #mode: verify-full
        #ca_cert_file: /etc/monoport/database-ca.pem
        #server_name: db.example.com

# A host that runs agents only, without proxy and auth service, replaces the sections above by these
# (tctl tokens add prints them with the token and the pin filled in):
#
#   teleport:
#     proxy_server: {host}:3080
#     ca_pin: sha256:...
#     join_params: {{method: token, token_name: /etc/monoport/token}}
#   ssh_service: {{enabled: yes}}
"""


def sample(host: str, node: str) -> str:
    """The sample for a host.

    Args:
        host: its full name, by which clients reach it. node: its first label, as a resource name.
    """
    return _TEXT.format(host=host, node=node)


def sample_here() -> str:
    """The sample for this machine."""
    host = socket.gethostname().lower()
    return sample(host if host.isascii() and "." in host else "localhost", default_nodename())
