"""MySQL and MariaDB: values only."""

import shlex
from functools import partial
from urllib.parse import quote

from monoport.protocols.description import Description, Form, Settings, Shell, Ways
from monoport.routing.rows import DatabaseRule
from monoport.wire.mysql.front import MysqlFront
from monoport.wire.mysql.optionfile import quoted

_PERCENT = partial(quote, safe="")
_TCP = "--protocol=tcp --host={host} --port={port} --user={user}"  # localhost means the Unix socket otherwise
# The database is named by its option: behind the others, one that begins with a dash would be an option itself.
# Said in full: a `host` or `protocol` in the user's own ~/.my.cnf would lead elsewhere.
_UNIX = "--host=localhost --protocol=socket --socket="
_FILES = "--ssl-ca={cas} --ssl-cert={certificate} --ssl-key={key}"
_FIELDS = "host {host}, port {port}, user {user}[, database {database}], no password"
_TLS = "TLS with the server's name verified: CA {cas}, certificate {certificate}, key {key}"

_WAYS = Ways(
    lent=(
        Form("mariadb", f"mariadb {_TCP} --skip-ssl[ --database={{database}}]", shlex.quote),
        Form("mysql", f"mysql {_TCP} --ssl-mode=DISABLED[ --database={{database}}]", shlex.quote),
        Form("URI", "mysql://{user}@{address}/[{database}]", _PERCENT),
        Form("JDBC", "jdbc:mariadb://{address}/[{database}]?user={user}&sslMode=disable", _PERCENT),
        Form("GUI", f"{_FIELDS}, no TLS"),
    ),
    socket=(
        Form("mariadb", f"mariadb {_UNIX}{{host}} --user={{user}}[ --database={{database}}]", shlex.quote),
        Form("mysql", f"mysql {_UNIX}{{host}} --user={{user}}[ --database={{database}}]", shlex.quote),
        Form("URI", "mysql://{user}@localhost/[{database}]?unix_socket={host}", _PERCENT),
    ),
    own=(
        Form("mariadb", f"mariadb {_TCP} --ssl-verify-server-cert {_FILES}[ --database={{database}}]", shlex.quote),
        Form("mysql", f"mysql {_TCP} --ssl-mode=VERIFY_IDENTITY {_FILES}[ --database={{database}}]", shlex.quote),
        Form(
            "GUI",
            f"{_FIELDS}, {_TLS}",
        ),
    ),
    settings=Settings(
        file=".my.cnf",
        variable="",
        section="client_{service}",
        lines=(
            ("host", "{host}"),
            ("port", "{port}"),
            ("protocol", "tcp"),  # localhost means the Unix socket otherwise
            ("user", "{user}"),
            ("loose-database", "{database}"),  # programs other than the shell know no such option
            ("ssl-ca", "{cas}"),
            ("ssl-cert", "{certificate}"),
            ("ssl-key", "{key}"),
            ("loose-ssl-verify-server-cert", "1"),  # MariaDB's name for it
            ("loose-ssl-mode", "VERIFY_IDENTITY"),  # and MySQL's
        ),
        use="mariadb --defaults-group-suffix=_{service}",
        quote=quoted,
    ),
)

_SERVER = """\
my.cnf:           [mysqld]
                  ssl-cert = {certificate}
                  ssl-key = {key}
                  ssl-ca = {cas}
each user:        create user NAME require subject '/O={cluster}/OU=DATABASE/CN=NAME';
"""

PROTOCOL = Description(
    routing=DatabaseRule(name="mysql", alpn=("teleport-mysql",), greets=True),
    title="MySQL",
    default_port=3306,
    front=MysqlFront,
    engine="monoport.agents.database.mysql",
    shell=Shell(
        program="mariadb",
        others=("mysql",),
        arguments=(*f"{_UNIX}{{socket}}".split(), "--user={user}", "--database={database}"),
        install="apt-get install mariadb-client",
        socket="mysql.sock",
    ),
    ways=_WAYS,
    needs_database=False,
    passwords=True,
    listen_key="mysql_listen_addr",
    silence_key="mysql_on_silence",
    server=_SERVER,
    aliases=("mariadb",),
)
