"""Every kind of bad configuration, and the exact line that says so."""

import os
import textwrap
from pathlib import Path

import pytest

from monoport import config
from monoport.config import ConfigError

PROXY = """\
version: v3
proxy_service:
  enabled: yes
  public_addr: example.com:443
"""
DATABASES = """\
version: v3
teleport: {proxy_server: example.com}
db_service:
  enabled: yes
  databases:
"""


def refusal(text: str, name: str = "monoport.yaml") -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(textwrap.dedent(text), name)
    line = str(caught.value)
    assert "\n" not in line
    assert line.isprintable()
    return line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # only the host's own sshd
        (
            "version: v3\nssh_service: {enabled: yes, openssh: {sshd_addr: 10.0.0.1}}\n",
            "2:50: ssh_service.openssh.sshd_addr: 10.0.0.1 is not on loopback; expected the host's own sshd",
        ),
        ("version: v3\nssh_service: {enabled: yes, openssh: maybe}\n", "maybe"),
        # the file as YAML
        ("", "1:1: the file is empty; expected a configuration (see monoport configure)"),
        ("# nothing\n", "1:1: the file is empty; expected a configuration (see monoport configure)"),
        ("- version: v3\n", "1:1: expected keys with values, as in version: v3"),
        ("version\n", "1:1: expected keys with values, as in version: v3"),
        ("version: v3\nversion: v2\n", '2:1: the key "version" is given twice; expected it once'),
        (
            "version: v3\nproxy_service:\n  enabled: [yes\nauth_service:\n",
            "4:13: not valid YAML: while parsing a flow sequence, expected ',' or ']', but got ':'",
        ),
        (
            "version: v3\n\tproxy_service:\n",
            "2:1: not valid YAML: while scanning for the next token, found character '\\t' that cannot start any token",
        ),
        ("version: v3\na: \x07\n", "2:4: not valid YAML: a character that text files do not have"),
        ("version: *nothing\n", "1:10: not valid YAML: found undefined alias 'nothing'"),
        (
            "version: v3\n---\nversion: v3\n",
            "2:1: not valid YAML: expected a single document in the stream, but found another document",
        ),
        ("version: !secret v3\n", "1:10: the tag !secret means nothing here; expected a plain value"),
        ("version: v3\n1: x\n", "1:1: the key 1 is not a string; expected a name"),
        # the version
        (
            "proxy_service: {enabled: yes}\n",
            "1:1: version is missing, which means v1, and v1 is not available in this version yet; "
            "expected version: v3",
        ),
        ("version: v1\n", "1:1: version: v1 is not available in this version yet; expected v2 or v3"),
        ("\nversion: v4\n", '2:10: version: "v4": expected v2 or v3'),
        ("version: 3\n", "1:10: version: 3: expected v2 or v3"),
        # unknown keys
        (PROXY + "auth_servise: {}\n", '5:1: unknown key "auth_servise"; did you mean "auth_service"?'),
        (PROXY + "  web_listen: x\n", '5:3: unknown key "web_listen"; did you mean "web_listen_addr"?'),
        (
            PROXY + "  limits: {zzz: 1}\n",
            '5:12: unknown key "zzz"; expected one of connections, per_source',
        ),
        (PROXY + "  proxy_protocol: {network: 10.0.0.5}\n", '5:20: unknown key "network"; did you mean "networks"?'),
        (PROXY + 'teleport:\n  "\\e[31m": 1\n', None),
        # what a later version has
        (PROXY + "app_service:\n  enabled: yes\n", "app_service is not available in this version yet"),
        (PROXY + "app_service:\n  apps: []\n", "app_service is not available in this version yet"),
        (PROXY + "kubernetes_service: {enabled: true}\n", "kubernetes_service is not available in this version yet"),
        (PROXY + "  kube_listen_addr: 0.0.0.0:3026\n", "5:3: kube_listen_addr is not available in this version yet"),
        (PROXY + "  mysql_on_silence: 5s\n", '5:21: proxy_service.mysql_on_silence: "5s" is too short or too long'),
        (
            PROXY + "  mysql_on_silence: 1\n",
            "5:21: proxy_service.mysql_on_silence: 1 is not a time; expected 100ms to 4s",
        ),
        (
            PROXY + "teleport: {diag_addr: localhost}\n",
            '5:23: teleport.diag_addr: "localhost" is not an address: both a host and a port',
        ),
        (
            PROXY + "teleport: {diag_addr: ':3000'}\n",
            '5:23: teleport.diag_addr: ":3000" is not an address: both a host and a port',
        ),
        (
            PROXY + "teleport: {storage: {type: etcd}}\n",
            '5:22: storage type "etcd" is not available in this version yet',
        ),
        (PROXY + "auth_service: {session_recording: proxy}\n", 'session_recording: "proxy": expected node'),
        (PROXY + "auth_service: {session_recording: off}\n", 'session_recording: "off": expected node'),
        (PROXY + "auth_service: {proxy_listener_mode: separate}\n", 'proxy_listener_mode "separate" is not available'),
        (PROXY + "auth_service: {authentication: {type: saml}}\n", 'authentication type "saml" is not available'),
        (
            PROXY + "auth_service: {authentication: {second_factor: otp}}\n",
            '5:33: authentication second_factor "otp" is not available in this version yet',
        ),
        (
            PROXY + "ssh_service: {enabled: yes, listen_addr: '::'}\n",
            "5:29: listen_addr is not available in this version yet",
        ),
        # wrong types
        (PROXY + "teleport: x\n", '5:11: teleport: "x" is not a section; expected keys with values below it'),
        (
            "version: v3\nproxy_service: yes\n",
            '2:16: proxy_service: "yes" is not a section; expected keys with values below it',
        ),
        (
            "version: v3\nproxy_service:\n  enabled: maybe\n",
            '3:12: proxy_service.enabled: "maybe" is neither yes nor no; expected yes or no',
        ),
        (
            "version: v3\nproxy_service: {enabled: 1}\n",
            "proxy_service.enabled: 1 is neither yes nor no; expected yes or no",
        ),
        (
            "version: v3\nproxy_service:\n  public_addr: a\n",
            "2:1: enabled is missing; expected enabled: yes or enabled: no",
        ),
        (
            PROXY + "teleport: {nodename: 7}\n",
            "teleport.nodename: 7 is not a resource name; expected lower-case letters",
        ),
        (
            PROXY + "teleport: {data_dir: [a]}\n",
            "teleport.data_dir: a list is not a path; expected for example /var/lib/monoport",
        ),
        (PROXY + "teleport: {log: {severity: loud}}\n", '"loud": expected debug, info, warn or error'),
        (PROXY + "teleport: {log: {format: xml}}\n", '5:26: teleport.log.format: "xml": expected text or json'),
        (
            PROXY + "  limits: {connections: many}\n",
            '5:25: proxy_service.limits.connections: "many": expected a whole number',
        ),
        (
            PROXY + "  limits: {connections: 0}\n",
            "proxy_service.limits.connections: 0: expected a whole number, at least 1",
        ),
        (
            PROXY + "  proxy_protocol: {networks: [10.0.0.5, balancer.example.com]}\n",
            '5:41: proxy_service.proxy_protocol.networks[1]: "balancer.example.com" is not a network; '
            "expected for example 10.0.0.5 or 10.0.0.0/24",
        ),
        (PROXY + "  proxy_protocol: {networks: 7}\n", "7 is not a network; expected for example 10.0.0.5"),
        (PROXY + "  proxy_protocol: {networks: 10.0.0.5/8}\n", '"10.0.0.5/8" has host bits set; expected'),
        (PROXY + "  proxy_protocol: {networks: 0.0.0.0/0}\n", '"0.0.0.0/0" is everybody; expected the addresses of'),
        (PROXY + "  proxy_protocol: {networks: '::/0'}\n", '"::/0" is everybody; expected the addresses of'),
        (PROXY + "  proxy_protocol: {networks: '::ffff:10.0.0.5'}\n", '"::ffff:10.0.0.5" is IPv4 written as IPv6'),
        (PROXY + "  proxy_protocol: yes\n", 'proxy_service.proxy_protocol: "yes" is not a section; expected keys'),
        (PROXY + "  limits: {per_source: 9999999}\n", "9999999: expected a whole number, at most 1000000"),
        (PROXY + "  https_keypairs: a.pem\n", '5:19: proxy_service.https_keypairs: "a.pem": expected a list'),
        (PROXY + "  https_keypairs: [a.pem]\n", '5:20: proxy_service.https_keypairs[0]: "a.pem" is not a section'),
        (
            PROXY + "  https_keypairs: [{}]\n",
            "5:20: key_file is missing; expected it in proxy_service.https_keypairs[0]",
        ),
        (
            PROXY + "ssh_service: {enabled: no, labels: prod}\n",
            'ssh_service.labels: "prod" are not labels; expected a mapping',
        ),
        (
            PROXY + "ssh_service:\n  enabled: no\n  labels:\n    env: [a]\n",
            '8:10: ssh_service.labels: label "env" is a list; expected a string',
        ),
        (
            PROXY + "teleport: {join_params: {token_name: 7}}\n",
            "token_name: 7 is not a token; expected one of tctl tokens",
        ),
        (
            PROXY + "teleport: {join_params: {token_name: {}}}\n",
            "token_name: a mapping is not a token; expected one of",
        ),
        (PROXY + "auth_service: {cluster_name: 5}\n", "auth_service.cluster_name: 5 is not a host name; expected for"),
        # addresses
        (
            PROXY + "  web_listen_addr: 0.0.0.0:99999\n",
            '5:20: proxy_service.web_listen_addr: "0.0.0.0:99999" is not an address: the port "99999" is not a number '
            "from 0 to 65535; expected host:port, as in 0.0.0.0:3080",
        ),
        (PROXY + "  web_listen_addr: 3080\n", "3080 is not an address; expected host:port, for example 0.0.0.0:3080"),
        (PROXY + "  web_listen_addr: '1:2:3'\n", '"1:2:3" is not an address: it has more than one colon'),
        (PROXY + "  web_listen_addr: 'a b:1'\n", "is not an address: illegal host name 'a b'; expected host:port"),
        (
            PROXY + "  web_listen_addr: 10.0.0.300:1\n",
            '"10.0.0.300:1" is not an address: "10.0.0.300" is not an IP address',
        ),
        (PROXY + "  web_listen_addr: '[::1:1'\n", '"[::1:1" is not an address: the brackets do not match'),
        (PROXY + "  web_listen_addr: '[a]:1'\n", 'is not an address: "a" is not an IP address'),
        (PROXY + "  web_listen_addr: 'a:'\n", 'the port "" is not a number from 0 to 65535'),
        (PROXY + "  web_listen_addr:\n", "nothing is not an address; expected host:port, for example 0.0.0.0:3080"),
        ("version: v3\nproxy_service: {enabled: yes, public_addr: ':443'}\n", "is not an address: the host is missing"),
        (
            "version: v3\nproxy_service:\n  enabled: yes\n  public_addr:\n  - ok:1\n  - ok:x\n",
            '6:5: proxy_service.public_addr[1]: "ok:x" is not an address: the port "x" is not a number from 1 to 65535',
        ),
        (PROXY + "teleport: {ca_pin: abc}\n", 'teleport.ca_pin[0]: "abc" is not a CA pin; expected sha256: and 64'),
        (PROXY + "auth_service: {cluster_name: 'a b'}\n", 'auth_service.cluster_name: "a b" is not a host name'),
        # names
        (
            PROXY + "teleport:\n  nodename: Web_1\n",
            '6:13: teleport.nodename: "Web_1" is not a resource name; expected lower-case letters, digits and hyphens, '
            "at most 63, as in orders-db",
        ),
        (PROXY + "teleport: {nodename: a.b}\n", '"a.b" is not a resource name'),
        (PROXY + "teleport: {nodename: kube}\n", '"kube" is a reserved name; expected any name but db and kube'),
        (
            DATABASES + "  - {name: db, protocol: postgres, uri: h}\n",
            '6:12: db_service.databases[0].name: "db" is a reserved name; expected any name but db and kube',
        ),
        (
            DATABASES + "  - {name: a, protocol: postgres, uri: h}\n  - {name: a, protocol: postgres, uri: i}\n",
            '7:12: there is a database "a" at line 6 already; expected another name',
        ),
        (
            DATABASES + "  - {name: a, protocol: postgers, uri: h}\n",
            '6:25: db_service.databases[0].protocol: "postgers" is not a protocol; did you mean "postgres"?',
        ),
        (
            DATABASES + "  - {name: a, protocol: 5, uri: h}\n",
            "5 is not a protocol; expected one of mongodb, mysql, postgres",
        ),
        (
            DATABASES + "  - {name: a, protocol: postgres}\n",
            "6:5: uri is missing; expected it in db_service.databases[0]",
        ),
        (
            DATABASES + "  - {name: a, protocol: postgres, uri: h, tls: {mode: off}}\n",
            '6:55: db_service.databases[0].tls.mode: "off": expected verify-full, verify-ca or insecure',
        ),
        (
            DATABASES.replace("  databases:\n", ""),
            "3:1: databases is missing; expected at least one in db_service",
        ),
        # what does not fit together
        (
            "version: v3\n",
            "1:1: no service is enabled; expected enabled: yes in at least one of auth_service, proxy_service",
        ),
        (
            "version: v3\nssh_service:\n  enabled: yes\n",
            "3:12: ssh_service needs a proxy; expected proxy_server in teleport, or proxy_service enabled here",
        ),
        (
            PROXY + "teleport: {auth_server: a}\nauth_service: {enabled: yes}\n",
            "6:25: auth_service is enabled and auth_server names another one; expected one of them",
        ),
        (
            PROXY + "auth_service: {enabled: no}\n",
            "5:25: auth_service is off; expected auth_server or proxy_server in teleport, or auth_service enabled",
        ),
        (
            "version: v3\nauth_service:\n  enabled: yes\n",
            "2:1: cluster_name is missing; expected it in auth_service where no proxy_service is enabled",
        ),
        (
            PROXY + "teleport:\n  proxy_service:\n    enabled: yes\n",
            "6:3: proxy_service is given twice, here and at line 2; expected it once",
        ),
    ],
)
def test_one_line_says_where_and_what(text: str, expected: str | None) -> None:
    line = refusal(text)
    assert line.startswith("monoport.yaml:")
    place, _, message = line.removeprefix("monoport.yaml:").partition(": ")
    assert all(part.isdigit() for part in place.split(":"))
    if expected is None:
        assert "\x1b" not in message
    elif expected[0].isdigit() and expected.partition(": ")[0].count(":") == 1:
        assert f"{place}: {message}".startswith(expected)
    else:
        assert expected in message


def test_position_is_inside_a_section_moved_from_teleport() -> None:
    text = "version: v2\nteleport:\n  proxy_service:\n    enabled: 'perhaps'\n"
    assert refusal(text).startswith('monoport.yaml:4:14: proxy_service.enabled: "perhaps" is neither yes nor no')


def test_the_first_of_several_errors_is_told() -> None:
    text = PROXY + "  limits: {connections: x}\nteleport: {nodename: X}\nssh_service: {enabled: z}\n"
    assert refusal(text).startswith("monoport.yaml:5:25: ")


def test_aliases_of_aliases_end(tmp_path: Path) -> None:
    lines = ["version: v3", "a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "more than 100000 values" in refusal("\n".join(lines))


def test_nesting_without_end() -> None:
    assert refusal("a: " + "[" * 1200).startswith("monoport.yaml:1:")


def test_a_huge_file_is_not_parsed() -> None:
    assert "at most 1048576 are expected" in refusal("#" * 1_048_577)


class TestFiles:
    def test_no_such_configuration(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            config.load(tmp_path / "none.yaml")
        expected = (
            "cannot read the configuration: No such file or directory; expected a file (monoport configure prints one)"
        )
        assert str(caught.value) == f"{tmp_path}/none.yaml:1:1: {expected}"

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="1:1: cannot read the configuration: Is a directory"):
            config.load(tmp_path)

    def test_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_bytes(b"version: v3\n# caf\xe9\n")
        with pytest.raises(ConfigError) as caught:
            config.load(tmp_path / "c.yaml")
        assert str(caught.value) == f"{tmp_path}/c.yaml:2:6: a byte that is not UTF-8; expected a text file"

    def test_missing_certificate(self, tmp_path: Path) -> None:
        text = PROXY + "  https_keypairs:\n  - key_file: key.pem\n    cert_file: cert.pem\n"
        (tmp_path / "key.pem").write_text("")
        expected = (
            f"{tmp_path}/c.yaml:7:16: proxy_service.https_keypairs[0].cert_file: cannot read {tmp_path}/cert.pem: "
            "No such file or directory; expected a readable file"
        )
        assert refusal(text, str(tmp_path / "c.yaml")) == expected

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_unreadable_certificate(self, tmp_path: Path) -> None:
        (tmp_path / "key.pem").write_text("")
        (tmp_path / "key.pem").chmod(0)
        text = PROXY + "  https_keypairs: [{key_file: key.pem, cert_file: key.pem}]\n"
        assert "Permission denied" in refusal(text, str(tmp_path / "c.yaml"))

    def test_empty_certificate(self, tmp_path: Path) -> None:
        (tmp_path / "a.pem").write_text("")
        text = PROXY + "  https_keypairs: [{key_file: a.pem, cert_file: a.pem}]\n"
        assert f"{tmp_path}/a.pem holds no certificate in PEM form" in refusal(text, str(tmp_path / "c.yaml"))

    def test_key_of_another_certificate(self, tmp_path: Path, key_pair: tuple[Path, Path], other_key: Path) -> None:
        _, certificate = key_pair
        text = PROXY + f"  https_keypairs:\n  - key_file: {other_key}\n    cert_file: {certificate}\n"
        expected = f"6:15: {other_key} is not the key of {certificate}; expected the key of its first certificate"
        assert refusal(text) == f"monoport.yaml:{expected}"

    def test_not_a_key(self, tmp_path: Path, key_pair: tuple[Path, Path]) -> None:
        _, certificate = key_pair
        text = PROXY + f"  https_keypairs:\n  - key_file: {certificate}\n    cert_file: {certificate}\n"
        assert refusal(text).startswith(f"monoport.yaml:6:15: {certificate} holds no private key in PEM form")

    def test_missing_database_ca(self, tmp_path: Path) -> None:
        text = DATABASES + "  - {name: a, protocol: postgres, uri: h, tls: {ca_cert_file: /none.pem}}\n"
        assert "tls.ca_cert_file: cannot read /none.pem: No such file" in refusal(text)

    def test_missing_token_file(self) -> None:
        text = PROXY + "teleport:\n  join_params:\n    token_name: /none/token\n"
        why = "cannot read /none/token: No such file or directory; expected a readable file"
        assert refusal(text) == f"monoport.yaml:7:17: teleport.join_params.token_name: {why}"

    def test_token_file_with_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("two words\n")
        text = PROXY + f"teleport: {{join_params: {{token_name: {tmp_path}/token}}}}\n"
        assert f"{tmp_path}/token does not hold a token; expected one line" in refusal(text)

    def test_huge_file(self, tmp_path: Path) -> None:
        (tmp_path / "token").write_bytes(b"x" * 1_048_577)
        text = PROXY + f"teleport: {{join_params: {{token_name: {tmp_path}/token}}}}\n"
        assert f"{tmp_path}/token is larger than 1048576 bytes" in refusal(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (PROXY + "  web_listen_addr: 127.0.0.1:3080\n", "5:20"),
        (PROXY, "2:1"),  # the default stands nowhere: its section is named
        ("version: v3\nteleport:\n  proxy_service: {enabled: yes, web_listen_addr: ':3080'}\n", "3:50"),
        ("version: v3\nteleport:\n  proxy_service: {enabled: yes}\n", "3:3"),
    ],
)
def test_what_is_found_out_only_when_tried_has_its_place_too(text: str, place: str) -> None:
    """As an address in use."""
    error = config.parse(text, "monoport.yaml").error("proxy_service", "web_listen_addr", "in use; expected another")
    assert str(error) == f"monoport.yaml:{place}: proxy_service.web_listen_addr: in use; expected another"
