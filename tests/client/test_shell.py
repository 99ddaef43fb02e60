"""Database clients through a local proxy of their own, and programs in the foreground."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from monoport.client.databases import Wanted, find, logins, logout
from monoport.client.foreground import run
from monoport.client.forward import Forward, forward
from monoport.client.front import Credentials
from monoport.client.profile import Home
from monoport.client.shell import connect
from monoport.errors import Failure

from .conftest import Cas, database_login, server_context, signed_in
from .test_localproxy import ALPN, Database, upper
from .test_ways import pair_of

PSQL = f"""#!{sys.executable}
import pathlib, re, socket, stat, sys
found = dict(re.findall(r"(\\w+)='?((?:\\\\.|[^'\\\\ ])*)'?", sys.argv[1]))
path = f"{{found['host']}}/.s.PGSQL.{{found['port']}}"
client = socket.socket(socket.AF_UNIX)
client.connect(path)
client.sendall(b"hello")
client.shutdown(socket.SHUT_WR)
answer = b""
while data := client.recv(100):
    answer += data
mode = oct(stat.S_IMODE(pathlib.Path(found["host"]).stat().st_mode))
pathlib.Path(sys.argv[2]).write_text("\\n".join([sys.argv[1], mode, answer.decode()]))
sys.exit(7)
"""


# Any other client: it writes down its words, and who else could reach the socket that they name.
CLIENT = f"""#!{sys.executable}
import json, pathlib, re, stat, sys, urllib.parse
*words, out = sys.argv[1:]
path = pathlib.Path(re.search(r"/[^?]*?\\.sock", urllib.parse.unquote(" ".join(words)).replace("//", "", 1))[0])
modes = [oct(stat.S_IMODE(each.stat().st_mode)) for each in (path.parent, path)]
pathlib.Path(out).write_text(json.dumps([words, str(path), modes]))
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder for PATH with a psql, a mongosh and a mariadb that are ours."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("psql", PSQL), ("mongosh", CLIENT), ("mariadb", CLIENT)):
        program = folder / name
        program.write_text(text)
        program.chmod(0o755)
    return folder


async def test_the_program_reaches_the_database_over_a_private_socket_and_its_status_is_returned(
    home: Home, cas: Cas, programs: Path, tmp_path: Path
) -> None:
    database = Database(upper)
    async with database.running(server_context(cas, alpn=ALPN)) as port:
        profile = signed_in(home, cas, port)
        database_login(home, cas, profile, "orders", db_user="o'neil \\", database="shop")
        async with asyncio.timeout(30):
            status = await connect(
                home,
                profile,
                Wanted("orders"),
                [str(tmp_path / "said")],
                report=pytest.fail,
                environment={"PATH": str(programs)},
            )
    words, mode, answer = (tmp_path / "said").read_text().splitlines()
    assert status == 7
    assert answer == "HELLO"
    assert mode == "0o700"
    assert "user='o\\'neil \\\\' dbname=shop sslmode=disable" in words
    assert database.certificates[0] is not None
    folder = words.split("host=")[1].split(" ")[0]
    assert not os.path.exists(folder)  # noqa: ASYNC240 # nothing else runs in this loop any more


UNIX = ["--host=localhost", "--protocol=socket", "--socket={path}"]
MONGO = "mongodb://{quoted}/{}?directConnection=true"


@pytest.mark.parametrize(
    ("protocol", "user", "database", "words"),
    [
        ("mongodb", "alice", "", [MONGO.format("", quoted="{quoted}")]),
        ("mongodb", "alice", "a/b?c d#é", [MONGO.format("a%2Fb%3Fc%20d%23%C3%A9", quoted="{quoted}")]),
        ("mysql", "o'neil", "", [*UNIX, "--user=o'neil"]),
        ("mysql", "alice", "shop", [*UNIX, "--user=alice", "--database=shop"]),
    ],
)
async def test_the_program_gets_words_for_what_was_chosen_and_a_socket_that_only_the_user_can_open(
    home: Home, cas: Cas, programs: Path, tmp_path: Path, protocol: str, user: str, database: str, words: list[str]
) -> None:
    profile = signed_in(home, cas, 1)
    database_login(home, cas, profile, "orders", protocol=protocol, db_user=user, database=database)
    said = tmp_path / "said"
    async with asyncio.timeout(30):
        status = await connect(
            home,
            profile,
            Wanted("orders"),
            [str(said)],
            report=pytest.fail,
            environment={"PATH": str(programs)},
        )
    found, path, modes = json.loads(said.read_text())
    assert status == 0
    assert found == [word.format(path=path, quoted=quote(path, safe="")) for word in words]
    assert modes == ["0o700", "0o600"]


async def test_many_connections_that_fail_for_one_reason_are_one_line(home: Home, cas: Cas, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        profile = signed_in(home, cas, taken.getsockname()[1])
    database_login(home, cas, profile, "orders", db_user="alice", database="shop")
    program, said = tmp_path / "psql", list[str]()
    program.write_text(PSQL.replace("client = ", "for _ in range(4):\n  client = ").replace("\nclient.", "\n  client."))
    program.chmod(0o755)
    words, environment = [str(tmp_path / "said")], {"PATH": str(tmp_path)}
    async with asyncio.timeout(30):
        await connect(home, profile, Wanted("orders"), words, report=said.append, environment=environment)
    (line,) = said
    assert line.startswith("cannot reach the proxy: ")


async def test_a_missing_program_is_named_with_how_to_get_it(home: Home, cas: Cas, tmp_path: Path) -> None:
    profile = signed_in(home, cas, 1)
    database_login(home, cas, profile, "orders", db_user="alice", database="shop")
    with pytest.raises(Failure, match="psql is not installed: apt-get install postgresql-client"):
        await connect(home, profile, Wanted("orders"), report=pytest.fail, environment={"PATH": str(tmp_path)})


@pytest.mark.parametrize(
    ("user", "database", "says"), [("", "shop", "--db-user=USER"), ("alice", "", "--db-name=DATABASE")]
)
async def test_what_must_be_chosen_is_asked_for(
    home: Home, cas: Cas, programs: Path, user: str, database: str, says: str
) -> None:
    profile = signed_in(home, cas, 1)
    database_login(home, cas, profile, "orders", db_user=user, database=database)
    with pytest.raises(Failure, match=says):
        await connect(home, profile, Wanted("orders"), report=pytest.fail, environment={"PATH": str(programs)})


async def test_a_local_proxy_says_where_it_listens_and_stops_at_a_signal(home: Home, cas: Cas) -> None:
    said: list[str] = []
    async with Database(upper).running(server_context(cas, alpn=ALPN)) as port:
        profile = signed_in(home, cas, port)
        database_login(home, cas, profile, "orders")
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            listening = asyncio.Event()

            def announce(line: str) -> None:
                said.append(line)
                listening.set()

            group.create_task(
                forward(
                    home,
                    profile,
                    Forward(Wanted("orders"), "127.0.0.1:0", tunnel=True),
                    announce=announce,
                    report=pytest.fail,
                )
            )
            await listening.wait()
            local = int(said[0].split("127.0.0.1:")[1].split(" ")[0])
            reader, writer = await asyncio.open_connection("127.0.0.1", local)
            writer.write(b"a")
            assert await reader.readexactly(1) == b"A"
            writer.close()
            os.kill(os.getpid(), signal.SIGTERM)
    assert "PostgreSQL database orders of example.com" in said[0]
    assert "acts as you" in said[1]


async def test_a_private_socket_is_made_for_the_program_and_removed_at_the_end(
    home: Home, cas: Cas, tmp_path: Path
) -> None:
    said: list[str] = []
    folder = tmp_path / "sockets"
    async with Database(upper).running(server_context(cas, alpn=ALPN)) as port:
        profile = signed_in(home, cas, port)
        database_login(home, cas, profile, "orders", db_user="alice", database="shop")
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            listening = asyncio.Event()

            def announce(line: str) -> None:
                said.append(line)
                if "URI" in line:
                    listening.set()

            wanted = Forward(Wanted("orders"), unix=folder, port=5433)
            group.create_task(forward(home, profile, wanted, announce=announce, report=pytest.fail))
            await listening.wait()
            assert folder.stat().st_mode & 0o777 == 0o700
            reader, writer = await asyncio.open_unix_connection(str(folder / ".s.PGSQL.5433"))
            writer.write(b"a")
            assert await reader.readexactly(1) == b"A"
            writer.close()
            os.kill(os.getpid(), signal.SIGTERM)
    assert said[0].startswith(f"listening on {folder}/.s.PGSQL.5433 for PostgreSQL database orders of example.com")
    assert f'psql "host={folder} port=5433 user=alice dbname=shop"' in said[2]
    assert list(folder.iterdir()) == []


async def test_a_socket_whose_name_clients_would_take_for_a_host_is_refused(
    home: Home, cas: Cas, tmp_path: Path
) -> None:
    profile = signed_in(home, cas, 1)
    database_login(home, cas, profile, "orders", protocol="mongodb", db_user="alice")
    wanted = Forward(Wanted("orders"), unix=tmp_path / "m")
    with pytest.raises(Failure, match=r"/m: MongoDB's clients know a socket by its name, which must end in \.sock"):
        await forward(home, profile, wanted, announce=pytest.fail, report=pytest.fail)
    assert not (tmp_path / "m").exists()


async def test_logging_out_ends_a_local_proxy_with_one_line(
    home: Home, cas: Cas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monoport.client.renewal.LOOK", 0.01)
    async with Database(upper).running(server_context(cas, alpn=ALPN)) as port:
        profile = signed_in(home, cas, port)
        database_login(home, cas, profile, "orders")

        def announce(_line: str) -> None:
            home.forget(profile)

        with pytest.raises(Failure, match="you have logged out"):
            async with asyncio.timeout(30):
                await forward(
                    home, profile, Forward(Wanted("orders"), tunnel=True), announce=announce, report=pytest.fail
                )


async def test_a_wide_listener_is_refused_before_anything_is_asked_of_the_cluster(home: Home, cas: Cas) -> None:
    profile = signed_in(home, cas, 1)
    with pytest.raises(Failure, match="--share-identity"):
        await forward(
            home, profile, Forward(Wanted("orders"), "0.0.0.0:0", tunnel=True), announce=pytest.fail, report=pytest.fail
        )


def test_logins_on_disk(home: Home, cas: Cas) -> None:
    profile = signed_in(home, cas, 1)
    database_login(home, cas, profile, "orders", db_user="alice")
    path = database_login(home, cas, profile, "stock")
    stranger = home.keys(profile).database("example.com", "strange")
    stranger.write_text("not a certificate")
    renamed = home.keys(profile).database("example.com", "renamed")
    renamed.write_bytes(path.read_bytes())
    assert [each.destination.name for each in logins(home, profile)] == ["orders", "stock"]
    found = find(home, profile, "orders")
    assert found is not None
    assert found.destination.user == "alice"
    assert Wanted("orders", "alice").met_by(found)
    assert Wanted("orders").met_by(found)
    assert not Wanted("orders", "bob").met_by(found)
    assert not Wanted("stock").met_by(found)
    assert logout(home, profile, "orders") == ["orders"]
    assert find(home, profile, "orders") is None
    with pytest.raises(Failure, match="not logged in to a database 'orders'"):
        logout(home, profile, "orders")
    assert logout(home, profile) == ["renamed", "stock", "strange"]


@pytest.mark.parametrize(("script", "status"), [("exit 5", 5), ("kill -KILL $$", 137), ("true", 0)])
async def test_the_foreground_program_gives_its_status(script: str, status: int) -> None:
    assert await run(["/bin/sh", "-c", script], os.environ) == status


async def test_signals_for_us_reach_the_program() -> None:
    reading, writing = os.pipe()
    script = f"trap 'exit 42' TERM; echo x >&{writing}; while :; do sleep 0.05; done"

    def send() -> None:
        os.read(reading, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    os.set_inheritable(writing, True)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(asyncio.to_thread(send))
        command = ["/bin/sh", "-c", script.replace(f"&{writing}", f"/proc/{os.getpid()}/fd/{writing}")]
        assert await run(command, os.environ) == 42
    os.close(reading)
    os.close(writing)


async def test_a_certificate_alone_says_which_database_and_protocol(home: Home, cas: Cas) -> None:
    async with Database(upper).running(server_context(cas, alpn=ALPN)) as port:
        profile = signed_in(home, cas, port)
        path = database_login(home, cas, profile, "orders", db_user="alice", database="shop")
        credentials = Credentials(path, home.keys(profile).key)
        listening: asyncio.Queue[str] = asyncio.Queue()
        wanted = Forward(Wanted(""), "127.0.0.1:0", tunnel=True, credentials=credentials)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(forward(home, profile, wanted, announce=listening.put_nowait, report=pytest.fail))
            said = await listening.get()
            assert "PostgreSQL database orders of example.com" in said
            reader, writer = await asyncio.open_connection("127.0.0.1", int(said.split("127.0.0.1:")[1].split(" ")[0]))
            writer.write(b"a")
            assert await reader.readexactly(1) == b"A"
            writer.close()
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("one",), r"  mongosh  mongosh .*&tlsCertificateKeyFile=\S*%2Fone\""),
        (("c", "k"), r"  MongoDB's clients want the private key, too: --cert FILE that holds both, to see how"),
    ],
)
async def test_a_string_names_the_file_that_was_given_or_what_is_missing(
    home: Home, cas: Cas, tmp_path: Path, names: tuple[str, ...], line: str
) -> None:
    profile = signed_in(home, cas, 1)
    database_login(home, cas, profile, "orders", protocol="mongodb", db_user="alice")
    paths = pair_of(home, profile, tmp_path, *names)
    said: list[str] = []
    announced = asyncio.Event()

    def announce(text: str) -> None:
        said.append(text)
        if len(said) == 3:
            announced.set()

    wanted = Forward(Wanted(""), "127.0.0.1:0", credentials=Credentials(paths[0], paths[-1]))
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(forward(home, profile, wanted, announce=announce, report=pytest.fail))
        await announced.wait()
        os.kill(os.getpid(), signal.SIGTERM)
    assert said[1] == "clients bring TLS and this certificate themselves"
    assert re.fullmatch(line, said[2]), said[2]


async def test_only_loopbacks_own_addresses_are_called_localhost(home: Home, cas: Cas) -> None:
    profile = signed_in(home, cas, 1)
    database_login(home, cas, profile, "orders", db_user="alice", database="shop")
    for address, host in (("127.0.0.1:0", "localhost"), ("127.0.0.2:0", "127.0.0.2")):
        heard: asyncio.Queue[str] = asyncio.Queue()
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            wanted = Forward(Wanted("orders"), address)
            group.create_task(forward(home, profile, wanted, announce=heard.put_nowait, report=pytest.fail))
            psql = [await heard.get() for _ in range(3)][-1]
            os.kill(os.getpid(), signal.SIGTERM)
        assert f'psql "host={host} port=' in psql


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (Wanted("stock"), "is for alice in shop of database orders"),
        (Wanted("orders", "reader"), "is for alice in shop of database orders"),
    ],
)
async def test_a_certificate_for_another_database_or_user_is_refused(
    home: Home, cas: Cas, wanted: Wanted, says: str
) -> None:
    profile = signed_in(home, cas, 1)
    path = database_login(home, cas, profile, "orders", db_user="alice", database="shop")
    asked = Forward(wanted, "127.0.0.1:0", credentials=Credentials(path, home.keys(profile).key))
    with pytest.raises(Failure, match=says):
        await forward(home, profile, asked, announce=pytest.fail, report=pytest.fail)


async def test_a_file_without_a_database_certificate_is_named(home: Home, cas: Cas) -> None:
    profile = signed_in(home, cas, 1)
    own = home.keys(profile).certificate
    asked = Forward(Wanted(""), "127.0.0.1:0", credentials=Credentials(own, own))
    with pytest.raises(Failure, match=r"holds no certificate for a database of example\.com"):
        await forward(home, profile, asked, announce=pytest.fail, report=pytest.fail)
