"""MySQL and MariaDB: values only."""

import shlex
from functools import partial
from urllib.parse import quote

from monoport.protocols.description import Description, Form, Settings, Shell, Ways
from monoport.routing.rows import DatabaseRule
from monoport.wire.mysql.front import MysqlFront
from monoport.wire.mysql.optionfile import quoted

_PERCENT = partial(quote, safe="")
_FILES = "--ssl-ca={cas} --ssl-cert={certificate} --ssl-key={key}"

_WAYS = Ways(
    lent=(
        Form("mariadb", "mariadb --host={host} --port={port} --user={user} {database}", shlex.quote),
        Form("URI", "mysql://{user}@{address}/{database}", _PERCENT),
        Form("JDBC", "jdbc:mariadb://{address}/{database}?user={user}&sslMode=disable", _PERCENT),
    ),
    socket=(
        Form("mariadb", "mariadb --socket={host} --user={user} {database}", shlex.quote),
        Form("URI", "mysql://{user}@localhost/{database}?unix_socket={host}", _PERCENT),
    ),
    own=(
        Form("mariadb", f"mariadb --host={{host}} --port={{port}} --user={{user}} {_FILES} {{database}}", shlex.quote),
        Form("mysql", f"mysql --host={{host}} --port={{port}} --user={{user}} {_FILES} {{database}}", shlex.quote),
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

PROTOCOL = Description(
    routing=DatabaseRule(name="mysql", alpn=("teleport-mysql",), greets=True),
    title="MySQL",
    default_port=3306,
    front=MysqlFront,
    engine="monoport.agents.database.mysql",
    shell=Shell(
        program="mariadb",
        others=("mysql",),
        arguments=("--socket={socket}", "--user={user}", "--database={database}"),
        install="apt-get install mariadb-client",
        socket="mysql.sock",
    ),
    ways=_WAYS,
    needs_database=False,
    passwords=True,
    listen_key="mysql_listen_addr",
    aliases=("mariadb",),
)
