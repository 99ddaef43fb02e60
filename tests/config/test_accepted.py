"""What a good configuration means, defaults included."""

import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monoport import config
from monoport.config import Address, Config, ConfigError
from monoport.config.values import parse_address

RFD39 = """\
version: v2
teleport:
  proxy_service:
    enabled: "yes"
    public_addr:  ['example.teleport.sh:443']
    web_listen_addr: 0.0.0.0:443
    https_keypairs:
      - key_file: {key}
        cert_file: {cert}
"""


def parse(text: str) -> Config:
    return config.parse(text, "monoport.yaml")


def test_the_example_of_rfd39(key_pair: tuple[Path, Path]) -> None:
    key, cert = key_pair
    loaded = parse(RFD39.format(key=key, cert=cert))
    assert loaded.proxy_service.enabled
    assert loaded.proxy_service.web_listen_addr == Address("0.0.0.0", 443)
    assert loaded.public_addrs == (Address("example.teleport.sh", 443),)
    assert loaded.proxy_service.https_keypairs[0].key_file == key
    assert loaded.auth_service.enabled
    assert loaded.cluster_name == "example.teleport.sh"


def test_v2_and_v3_start_only_what_is_named() -> None:
    for version in ("v2", "v3"):
        loaded = parse(f"version: {version}\nproxy_service: {{enabled: yes, public_addr: a.example}}\n")
        proxy = loaded.proxy_service
        assert (proxy.listen_addr, proxy.tunnel_listen_addr, proxy.postgres_listen_addr) == (None, None, None)
        assert loaded.auth_service.listen_addr is None


def test_defaults() -> None:
    loaded = parse("version: v3\nproxy_service: {enabled: yes}\n")
    name = loaded.teleport.nodename
    assert name == socket.gethostname().split(".")[0].lower()
    assert loaded.teleport.data_dir == Path("/var/lib/monoport")
    assert loaded.teleport.storage.type == "sqlite"
    assert (loaded.teleport.log.severity, loaded.teleport.log.format) == ("info", "text")
    assert loaded.proxy_service.web_listen_addr == Address("0.0.0.0", 3080)
    assert loaded.public_addrs == (Address(name, 3080),)
    assert loaded.proxy_service.limits.per_source is None
    assert not loaded.ssh_service.enabled
    assert not loaded.db_service.enabled


@pytest.mark.parametrize(
    ("written", "networks"),
    [
        ("{networks: [10.0.0.5, 192.0.2.0/24, '2001:db8::/64']}", ["10.0.0.5/32", "192.0.2.0/24", "2001:db8::/64"]),
        ("{networks: 10.0.0.5}", ["10.0.0.5/32"]),
        ("{networks: []}", []),
        ("{}", []),
        ("no", []),
        ("off", []),
    ],
)
def test_networks_of_balancers(written: str, networks: list[str]) -> None:
    loaded = parse(f"version: v3\nproxy_service: {{enabled: yes, proxy_protocol: {written}}}\n")
    assert [str(network) for network in loaded.proxy_service.proxy_protocol.networks] == networks


@pytest.mark.parametrize("machine", ["Web_01.example.com", "kube", "", "-", "x" * 80])
def test_nodename_is_a_resource_name_whatever_the_machine_is_called(
    machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: machine)
    name = parse("version: v3\nproxy_service: {enabled: yes}\n").teleport.nodename
    assert (
        parse(f"version: v3\nteleport: {{nodename: {name}}}\nproxy_service: {{enabled: yes}}\n").teleport.nodename
        == name
    )


@pytest.mark.parametrize("word", ["yes", '"yes"', "true", "on", "'Yes'", "True", "ON"])
def test_enabled_takes_many_words(word: str) -> None:
    assert parse(f"version: v3\nproxy_service: {{enabled: {word}}}\n").proxy_service.enabled


@pytest.mark.parametrize("word", ["no", '"no"', "false", "off", "'False'"])
def test_so_does_disabled(word: str) -> None:
    loaded = parse(f"version: v3\nproxy_service: {{enabled: yes}}\nssh_service: {{enabled: {word}}}\n")
    assert not loaded.ssh_service.enabled


@pytest.mark.parametrize("text", ["app_service: {enabled: no}", "kubernetes_service: {enabled: 'off', labels: {}}"])
def test_a_later_service_may_be_off(text: str) -> None:
    assert parse(f"version: v3\nproxy_service: {{enabled: yes}}\n{text}\n").proxy_service.enabled


def test_public_addresses() -> None:
    text = "version: v3\nproxy_service:\n  enabled: yes\n  web_listen_addr: ':8443'\n  public_addr: {}\n"
    assert parse(text.format("EXAMPLE.com.")).public_addrs == (Address("example.com", 8443),)
    loaded = parse(text.format("[Bücher.example, 'example.com:1', 'example.com:2', '[::1]:3', 127.0.0.1]"))
    assert [str(address) for address in loaded.public_addrs] == [
        "xn--bcher-kva.example:8443",
        "example.com:1",
        "example.com:2",
        "[::1]:3",
        "127.0.0.1:8443",
    ]
    assert loaded.public_hosts == ("xn--bcher-kva.example", "example.com", "[::1]", "127.0.0.1")
    assert loaded.cluster_name == "xn--bcher-kva.example"


def test_auth_service_follows_from_the_rest() -> None:
    proxy = "version: v3\nproxy_service: {enabled: yes}\n"
    assert parse(proxy).auth_service.enabled
    assert parse(proxy + "auth_service: {cluster_name: Main.Example}\n").cluster_name == "main.example"
    elsewhere = parse(proxy + "teleport: {auth_server: auth.example}\n")
    assert not elsewhere.auth_service.enabled
    assert elsewhere.cluster_name == ""
    assert elsewhere.teleport.auth_server == Address("auth.example", 3025)
    agent = parse("version: v3\nteleport: {proxy_server: example.com}\nssh_service: {enabled: yes}\n")
    assert not agent.auth_service.enabled
    assert agent.teleport.proxy_server == Address("example.com", 3080)


def test_default_ports_of_listeners() -> None:
    loaded = parse(
        "version: v3\nauth_service: {listen_addr: 10.0.0.1}\nssh_service: {enabled: yes}\n"
        "proxy_service: {enabled: yes, web_listen_addr: '::1', listen_addr: a, tunnel_listen_addr: a, "
        "postgres_listen_addr: a}\n"
    )
    proxy = loaded.proxy_service
    ports = (proxy.web_listen_addr, proxy.listen_addr, proxy.tunnel_listen_addr, proxy.postgres_listen_addr)
    assert [address.port for address in ports if address] == [3080, 3023, 3024, 5432]
    assert loaded.auth_service.listen_addr == Address("10.0.0.1", 3025)


def test_databases() -> None:
    loaded = parse(
        "version: v3\nteleport: {proxy_server: example.com}\ndb_service:\n  enabled: yes\n  databases:\n"
        "  - {name: orders, protocol: postgresql, uri: DB.example, static_labels: {env: prod, tier: 1, hot: true}}\n"
        "  - {name: old, protocol: postgres, uri: '10.0.0.1:5433', tls: {mode: insecure}}\n"
    )
    orders, old = loaded.db_service.databases
    assert (orders.protocol, orders.uri) == ("postgres", Address("db.example", 5432))
    assert orders.static_labels == {"env": "prod", "tier": "1", "hot": "true"}
    assert (orders.tls.mode, orders.tls.ca_cert_file, orders.tls.server_name) == ("verify-full", None, None)
    assert (old.uri, old.tls.mode) == (Address("10.0.0.1", 5433), "insecure")


def test_token_from_a_file_and_not_in_any_text(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret-token\n")
    text = (
        "version: v3\nproxy_service: {{enabled: yes}}\nteleport: {{join_params: {{method: token, token_name: {}}}}}\n"
    )
    loaded = parse(text.format(tmp_path / "token"))
    assert loaded.teleport.join_params.token_name == "s3cret-token"
    assert parse(text.format("plain")).teleport.join_params.token_name == "plain"
    assert "s3cret-token" not in repr(loaded)


def test_pins_and_limits() -> None:
    pin = "sha256:" + "AB" * 32
    loaded = parse(
        f"version: v3\nteleport: {{ca_pin: {pin}}}\nproxy_service: {{enabled: yes, limits: {{per_source: 7}}}}\n"
    )
    assert loaded.teleport.ca_pin == (pin.lower(),)
    assert loaded.proxy_service.limits.per_source == 7


def test_relative_paths_are_below_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("version: v3\nteleport: {data_dir: state}\nproxy_service: {enabled: yes}\n")
    assert config.load(file).teleport.data_dir == tmp_path / "state"


def test_merged_mappings_are_yaml_too() -> None:
    text = "version: v3\nproxy_service: {enabled: yes}\nssh_service:\n  enabled: no\n  labels:\n"
    assert parse(text + "    <<: {env: prod}\n    a: b\n").ssh_service.labels == {"a": "b", "env": "prod"}


def test_empty_sections_and_scalars_of_every_kind() -> None:
    loaded = parse(
        "version: v3\nteleport:\nproxy_service: {enabled: yes}\n"
        "ssh_service: {enabled: no, labels: {a: 1.5, b: 2020-01-02}}\n"
        "auth_service: {authentication: {second_factor: false}}\n"
    )
    assert loaded.ssh_service.labels == {"a": "1.5", "b": "2020-01-02"}
    assert loaded.auth_service.authentication.second_factor == "off"
    assert (
        parse("version: v3\nproxy_service: {enabled: yes}\nssh_service: {enabled: no, labels: }\n").ssh_service.labels
        == {}
    )


def test_a_configuration_is_frozen() -> None:
    loaded = parse("version: v3\nproxy_service: {enabled: yes}\n")
    with pytest.raises(ValueError, match="frozen"):
        loaded.version = "v2"


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_clear_error(text: str) -> None:
    told = ""
    try:
        address = parse_address(text, 1, listens=True)
    except ValueError as error:
        told = str(error)
    else:
        assert parse_address(str(address), 2, listens=True) == address
        return
    assert told


@settings(deadline=None)
@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_any_text_is_a_configuration_or_one_line(text: str) -> None:
    line = ""
    try:
        loaded = parse("version: v3\n" + text)
    except ConfigError as error:
        line = str(error)
    else:
        assert loaded.version == "v3"
        return
    assert line.startswith("monoport.yaml:")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("given", "enabled", "addr"),
    [
        ("yes", True, "127.0.0.1:22"),
        ("no", False, "127.0.0.1:22"),
        ("{sshd_addr: localhost:2222}", True, "localhost:2222"),
        ("{sshd_addr: '::1'}", True, "[::1]:22"),
        ("{enabled: no}", False, "127.0.0.1:22"),
    ],
)
def test_an_sshd_of_the_host_serves_the_sessions(given: str, enabled: bool, addr: str) -> None:
    text = f"version: v3\nteleport: {{proxy_server: example.com}}\nssh_service: {{enabled: yes, openssh: {given}}}\n"
    found = parse(text).ssh_service.openssh
    assert (found.enabled, str(found.sshd_addr)) == (enabled, addr)
