"""How connections are written down: connection strings, variables, and one section of a user's file."""

from __future__ import annotations

import json
import shlex
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import psycopg
import pytest

from monoport.client import databases, ways
from monoport.client.front import Credentials
from monoport.client.names import Address
from monoport.client.profile import Home, Profile
from monoport.errors import Failure
from monoport.protocols.description import Description
from monoport.protocols.mongodb import PROTOCOL as MONGODB
from monoport.protocols.mysql import PROTOCOL as MYSQL
from monoport.protocols.postgres import PROTOCOL as POSTGRES

from .conftest import Cas, database_login, signed_in

ODD = 'o\'neil \\ $HOME `x` "q" &?#'


@pytest.mark.parametrize("way", ["lent", "own", "socket"])
def test_every_form_leads_where_it_should_whatever_the_names(home: Home, cas: Cas, way: str) -> None:
    profile = signed_in(home, cas, 1)
    database_login(home, cas, profile, "orders", db_user=ODD, database="shop")
    (login,) = databases.logins(home, profile)
    at = Address("/run/x" if way == "socket" else "127.0.0.1", 5433)
    found = ways.words(home, profile, login, at)
    for form in getattr(POSTGRES.ways, way):
        text = ways.filled(form, found)
        if form.label == "GUI":
            assert text.startswith(f"host 127.0.0.1, port 5433, user {ODD}, database shop, no password, SSL mode ")
            continue
        if form.label == "JDBC":
            assert text.startswith("jdbc:postgresql://127.0.0.1:5433/shop?user=o%27neil%20")
            continue
        if form.program:
            shown = subprocess.run(["sh", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True)
            program, text = shown.stdout.removesuffix("\n").split("\n", 1)
            assert program == "psql"
        read = psycopg.conninfo.conninfo_to_dict(text)
        assert (read["host"], str(read["port"]), read["user"], read["dbname"]) == (at.host, "5433", ODD, "shop")
        if way == "own":
            keys = home.keys(profile)
            assert read["sslmode"] == "verify-full"
            assert [read[name] for name in ("sslrootcert", "sslcert", "sslkey")] == [
                str(keys.cas), str(keys.database("example.com", "orders")), str(keys.key)
            ]  # fmt: skip


def test_what_the_login_leaves_open_is_in_capitals_and_addresses_of_ipv6_in_brackets(home: Home, cas: Cas) -> None:
    profile = signed_in(home, cas, 1)
    database_login(home, cas, profile, "orders")
    (login,) = databases.logins(home, profile)
    psql, uri, *_ = POSTGRES.ways.lent
    found = ways.words(home, profile, login, Address("::1", 5432))
    assert ways.filled(psql, found) == 'psql "host=::1 port=5432 user=USER dbname=DATABASE sslmode=disable"'
    assert ways.filled(uri, found) == "postgresql://USER@[::1]:5432/DATABASE?sslmode=disable"


@pytest.mark.parametrize("database", ["", ODD, "-e\\! id"])  # the last would be run, were it a word of its own
@pytest.mark.parametrize("way", ["lent", "own", "socket"])
def test_mysqls_programs_get_one_word_for_each_value_whatever_the_names(
    home: Home, cas: Cas, way: str, database: str
) -> None:
    profile = signed_in(home, cas, 1)
    database_login(home, cas, profile, "people", protocol="mysql", db_user=ODD, database=database)
    (login,) = databases.logins(home, profile)
    at = Address("/run/x y" if way == "socket" else "localhost", 3307)
    found = ways.words(home, profile, login, at)
    keys = home.keys(profile)
    where = {
        "lent": ["--protocol=tcp", "--host=localhost", "--port=3307"],
        "own": ["--protocol=tcp", "--host=localhost", "--port=3307"],
        "socket": ["--host=localhost", "--protocol=socket", "--socket=/run/x y"],
    }[way]
    files = [f"--ssl-ca={keys.cas}", f"--ssl-cert={keys.database('example.com', 'people')}", f"--ssl-key={keys.key}"]
    tls = {
        "mariadb": {"lent": ["--skip-ssl"], "own": ["--ssl-verify-server-cert", *files], "socket": []},
        "mysql": {"lent": ["--ssl-mode=DISABLED"], "own": ["--ssl-mode=VERIFY_IDENTITY", *files], "socket": []},
    }
    lines = {form.label: ways.filled(form, found) for form in getattr(MYSQL.ways, way)}
    for program in ("mariadb", "mysql"):
        last = [f"--database={database}"] if database else []
        user = [f"--user={ODD}"]
        assert sorted(shlex.split(lines[program])) == sorted([program, *where, *user, *tls[program][way], *last])
    if way != "socket":
        assert ("database " in lines["GUI"]) is bool(database)
    if way != "own":
        assert urlsplit(lines["URI"]).path == "/" + quote(database, safe="")


@pytest.mark.parametrize("database", ["", ODD])
@pytest.mark.parametrize("way", ["lent", "own", "socket"])
def test_mongodbs_strings_name_a_database_only_if_there_is_one(home: Home, cas: Cas, way: str, database: str) -> None:
    profile = signed_in(home, cas, 1)
    database_login(home, cas, profile, "papers", protocol="mongodb", db_user="alice", database=database)
    (login,) = databases.logins(home, profile)
    at = Address("/run/x y.sock" if way == "socket" else "localhost", 27018)
    (shell, uri) = (ways.filled(form, ways.words(home, profile, login, at)) for form in getattr(MONGODB.ways, way))
    assert shlex.split(shell) == ["mongosh", uri]
    places = {"socket": "%2Frun%2Fx%20y.sock"}
    assert uri.startswith(f"mongodb://{places.get(way, 'localhost:27018')}/{quote(database, safe='')}?directConn")


@pytest.mark.parametrize("way", ["lent", "own", "socket"])
def test_mongodbs_strings_have_a_place_for_a_user_only_where_the_login_names_none(
    home: Home, cas: Cas, way: str
) -> None:
    profile = signed_in(home, cas, 1)
    at = Address("/run/x.sock" if way == "socket" else "localhost", 27018)
    found = {}
    for user in ("", "alice"):
        database_login(home, cas, profile, "papers", protocol="mongodb", db_user=user)
        (login,) = databases.logins(home, profile)
        found[user] = ways.filled(getattr(MONGODB.ways, way)[1], ways.words(home, profile, login, at))
    option = "&authMechanism=MONGODB-X509"
    assert found[""].startswith("mongodb://USER@")
    assert found[""].replace("USER@", "").replace(option, "") == found["alice"]
    assert option in found[""]


def pair_of(home: Home, profile: Profile, folder: Path, *names: str) -> list[Path]:
    """The files of a login of somebody else's making: certificate and key, in one file if there is but one name."""
    keys = home.keys(profile)
    texts = [keys.database("example.com", "orders").read_text(), keys.key.read_text()]
    if len(names) == 1:
        texts = ["".join(texts)]
    paths = [folder / name for name in names]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


@pytest.mark.parametrize(
    ("names", "protocol", "labels"),
    [
        (["one"], POSTGRES, ["psql", "URI", "GUI"]),
        (["one"], MYSQL, ["mariadb", "mysql", "GUI"]),
        (["one"], MONGODB, ["mongosh", "URI"]),
        (["c", "k"], POSTGRES, ["psql", "URI", "GUI"]),
        (["c.pem", "k.key"], POSTGRES, ["psql", "URI", "JDBC", "GUI"]),
        (["c", "k"], MYSQL, ["mariadb", "mysql", "GUI"]),
        (["c", "k"], MONGODB, []),
    ],
)
def test_files_that_were_named_are_what_is_printed(
    home: Home, cas: Cas, tmp_path: Path, names: list[str], protocol: Description, labels: list[str]
) -> None:
    profile = signed_in(home, cas, 1)
    database_login(home, cas, profile, "orders", protocol=protocol.name, db_user="alice", database="shop")
    paths = pair_of(home, profile, tmp_path, *names)
    login = databases.read_login(profile, Credentials(paths[0], paths[-1]))
    assert login is not None
    found = ways.words(home, profile, login, Address("localhost", 1), given=True)
    forms = ways.usable(protocol.ways.own, found)
    assert [form.label for form in forms] == labels
    for form in forms:
        text = unquote(ways.filled(form, found))
        assert all(str(path) in text for path in paths)
        assert "orders" not in text, "no file of ours"


@pytest.mark.parametrize("protocol", [POSTGRES, MYSQL, MONGODB])
def test_a_certificate_whose_key_nobody_named(home: Home, cas: Cas, protocol: Description) -> None:
    profile = signed_in(home, cas, 1)
    path = database_login(home, cas, profile, "orders", protocol=protocol.name, db_user="alice", database="shop")
    login = databases.read_login(profile, Credentials(path, path))
    assert login is not None
    found = ways.words(home, profile, login, Address("localhost", 1), given=True)
    assert ways.usable(protocol.ways.own, found) == []
    assert ways.usable(protocol.ways.lent, found) == list(protocol.ways.lent)


def test_variables_for_a_shell_and_as_json(home: Home, cas: Cas) -> None:
    profile = signed_in(home, cas, 3080)
    database_login(home, cas, profile, "orders", db_user=ODD)
    pairs = ways.environment(home, profile, "orders")
    assert (pairs["PGHOST"], pairs["PGPORT"], pairs["PGUSER"]) == ("localhost", "3080", ODD)
    assert "PGDATABASE" not in pairs, "any database: the client names it"
    assert json.loads(ways.exports(pairs, "json")) == pairs
    shown = subprocess.run(
        ["sh", "-c", ways.exports(pairs) + 'printf %s "$PGUSER"'], capture_output=True, text=True, check=True
    )
    assert shown.stdout == ODD
    assert all(shlex.split(line)[0] == "export" for line in ways.exports(pairs).splitlines())
    with pytest.raises(Failure, match="not logged in to a database 'stock': tsh db login stock"):
        ways.environment(home, profile, "stock")


def test_what_a_protocol_has_nothing_for_is_said_with_what_there_is(home: Home, cas: Cas) -> None:
    profile = signed_in(home, cas, 3080)
    database_login(home, cas, profile, "papers", protocol="mongodb")
    database_login(home, cas, profile, "people", protocol="mysql")
    with pytest.raises(Failure, match=r"MongoDB read no settings file: use tsh proxy db papers$"):
        ways.entry(home, profile, "papers")
    with pytest.raises(Failure, match=r"MongoDB take no such settings from the environment: use tsh proxy db papers$"):
        ways.environment(home, profile, "papers")
    says = "MySQL take no such .* environment: use tsh proxy db people or tsh db config people$"
    with pytest.raises(Failure, match=says):
        ways.environment(home, profile, "people")


PEOPLE = {"protocol": "mysql", "db_user": ODD, "database": "shop # 1"}


def test_mysqls_programs_read_back_what_was_written(
    home: Home, cas: Cas, tmp_path: Path, need: Callable[[str], str]
) -> None:
    """Its clients are told the port that greets them, and by `protocol` that they are not to take the Unix socket."""
    program = need("my_print_defaults")
    profile = signed_in(home, cas, 3080, database_ports={"mysql_listen_addr": 3036})
    database_login(home, cas, profile, "people", **PEOPLE)
    made = ways.entry(home, profile, "people", environ={"HOME": str(tmp_path)})
    ways.write(home, made)
    assert (made.path, made.use) == (tmp_path / ".my.cnf", "mariadb --defaults-group-suffix=_people")
    command = [program, f"--defaults-file={made.path}", "--defaults-group-suffix=_people", "client"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    read = dict(line.removeprefix("--").split("=", 1) for line in shown)
    keys = home.keys(profile)
    assert read == {
        "host": "localhost", "port": "3036", "protocol": "tcp", "user": ODD, "loose-database": "shop # 1",
        "ssl-ca": str(keys.cas), "ssl-cert": str(keys.database("example.com", "people")), "ssl-key": str(keys.key),
        "loose-ssl-verify-server-cert": "1", "loose-ssl-mode": "VERIFY_IDENTITY",
    }  # fmt: skip


def test_mysqls_programs_that_nobody_would_greet_are_sent_to_a_local_proxy(home: Home, cas: Cas) -> None:
    profile = signed_in(home, cas, 3080, database_ports={"postgres_listen_addr": 5432})
    database_login(home, cas, profile, "people", **PEOPLE)
    says = "localhost:3080 has no port that greets MySQL clients: use tsh proxy db people, or ask for mysql_listen_addr"
    with pytest.raises(Failure, match=says):
        ways.entry(home, profile, "people")


OTHERS = b"# mine\n[theirs]\nhost=h\n\n  [orders2]\r\nport=1\n# about the next\n[last]\nuser=\xff"


def test_a_section_is_added_and_replaced_and_nothing_else_changes(home: Home, cas: Cas, tmp_path: Path) -> None:
    profile = signed_in(home, cas, 3080)
    database_login(home, cas, profile, "orders", db_user="alice", database="shop")
    path = tmp_path / ".pg_service.conf"
    path.write_bytes(OTHERS)
    path.chmod(0o640)
    environ = {"HOME": str(tmp_path)}
    made = ways.entry(home, profile, "orders", environ=environ)
    assert (made.path, made.section, made.use) == (path, "orders", "psql service=orders")
    ways.write(home, made)
    assert path.read_bytes() == OTHERS + b"\n\n" + made.text.encode()
    path.write_bytes(path.read_bytes() + b"# after\n[end]\nhost=e\n")

    database_login(home, cas, profile, "orders", db_user="reader")
    again = ways.entry(home, profile, "orders", environ=environ)
    ways.write(home, again)
    ways.write(home, again)
    assert path.read_bytes() == OTHERS + b"\n\n" + again.text.encode() + b"# after\n[end]\nhost=e\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert "user=reader\n" in again.text
    assert "dbname" not in again.text
    assert "BEGIN" not in again.text, "paths, not what is in them"
    assert sorted(each.name for each in tmp_path.iterdir()) == [".pg_service.conf", "tsh"]


def test_a_section_that_is_not_ours_is_left_alone(home: Home, cas: Cas, tmp_path: Path) -> None:
    profile = signed_in(home, cas, 3080)
    database_login(home, cas, profile, "orders")
    path = tmp_path / "services"
    path.write_bytes(b"[orders]\nhost=h\n")
    environ = {"PGSERVICEFILE": str(path)}
    with pytest.raises(Failure, match=r"has a section \[orders\] that tsh did not write.*--service"):
        ways.write(home, ways.entry(home, profile, "orders", environ=environ))
    assert path.read_bytes() == b"[orders]\nhost=h\n"
    ways.write(home, ways.entry(home, profile, "orders", "mine", environ=environ))
    assert path.read_bytes().startswith(
        b"[orders]\nhost=h\n\n[mine]\n# by tsh db config: database orders of example.com\n"
    )


def test_a_new_file_is_private(home: Home, cas: Cas, tmp_path: Path) -> None:
    profile = signed_in(home, cas, 3080)
    database_login(home, cas, profile, "orders")
    made = ways.entry(home, profile, "orders", environ={"HOME": str(tmp_path / "new")})
    ways.write(home, made)
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert made.path.read_text() == made.text


@pytest.mark.parametrize("service", ["a]b", "a\nb", "x" * 65, "ä", "a b"])
def test_names_that_would_end_a_section(home: Home, cas: Cas, service: str) -> None:
    profile = signed_in(home, cas, 3080)
    database_login(home, cas, profile, "orders")
    with pytest.raises(Failure, match="cannot be a service"):
        ways.entry(home, profile, "orders", service)


def test_files_too_large_or_not_files_are_left_alone(home: Home, cas: Cas, tmp_path: Path) -> None:
    profile = signed_in(home, cas, 3080)
    database_login(home, cas, profile, "orders")
    path = tmp_path / "large"
    path.write_bytes(b"#" * (ways.MAX_FILE + 1))
    with pytest.raises(Failure, match="is left alone"):
        ways.write(home, ways.entry(home, profile, "orders", environ={"PGSERVICEFILE": str(path)}))
    with pytest.raises(Failure, match=r"cannot write .*: is a directory"):
        ways.write(home, ways.entry(home, profile, "orders", environ={"PGSERVICEFILE": str(tmp_path)}))
