"""PostgreSQL: values only."""

from functools import partial
from urllib.parse import quote

from monoport.protocols.description import Description, Form, Settings, Shell, Ways
from monoport.routing.rows import DatabaseRule
from monoport.wire.front import Why
from monoport.wire.postgres.conninfo import quoted
from monoport.wire.postgres.front import ALPN, PostgresFront
from monoport.wire.postgres.messages import GSSENC_REQUEST, SSL_REQUEST

_PERCENT = partial(quote, safe="")
_WORDS = "host={host} port={port} user={user} dbname={database}"
_FILES = "sslrootcert={cas} sslcert={certificate} sslkey={key}"
# JDBC's driver takes a key as PEM where its file's name ends so, and asks which kind it is.
_JDBC_FILES = "sslrootcert={cas}&sslcert={named_certificate}&sslkey={named_key}&pemKeyAlgorithm=EC"
_FIELDS = "host {host}, port {port}, user {user}, database {database}, no password"
_JDBC = "jdbc:postgresql://{address}/{database}?user={user}"

_WAYS = Ways(
    lent=(
        Form("psql", f"{_WORDS} sslmode=disable", quoted, "psql"),
        Form("URI", "postgresql://{user}@{address}/{database}?sslmode=disable", _PERCENT),
        Form("JDBC", f"{_JDBC}&sslmode=disable", _PERCENT),
        Form("GUI", f"{_FIELDS}, SSL mode disable"),
    ),
    socket=(
        Form("psql", _WORDS, quoted, "psql"),
        Form("URI", "postgresql://{user}@/{database}?host={host}&port={port}", _PERCENT),
    ),
    own=(
        Form("psql", f"{_WORDS} sslmode=verify-full {_FILES}", quoted, "psql"),
        Form(
            "URI",
            "postgresql://{user}@{address}/{database}?sslmode=verify-full&sslrootcert={cas}&sslcert={certificate}&sslkey={key}",
            _PERCENT,
        ),
        Form("JDBC", f"{_JDBC}&sslmode=verify-full&{_JDBC_FILES}", _PERCENT),
        Form("GUI", f"{_FIELDS}, SSL mode verify-full: root {{cas}}, certificate {{certificate}}, key {{key}}"),
    ),
    environment=(
        ("PGHOST", "{host}"),
        ("PGPORT", "{port}"),
        ("PGUSER", "{user}"),
        ("PGDATABASE", "{database}"),
        ("PGSSLMODE", "verify-full"),
        ("PGSSLROOTCERT", "{cas}"),
        ("PGSSLCERT", "{certificate}"),
        ("PGSSLKEY", "{key}"),
    ),
    settings=Settings(
        file=".pg_service.conf",
        variable="PGSERVICEFILE",
        section="{service}",
        lines=(
            ("host", "{host}"),
            ("port", "{port}"),
            ("user", "{user}"),
            ("dbname", "{database}"),
            ("sslmode", "verify-full"),
            ("sslrootcert", "{cas}"),
            ("sslcert", "{certificate}"),
            ("sslkey", "{key}"),
        ),
        use="psql service={service}",
    ),
)

_SERVER = """\
postgresql.conf:  ssl = on
                  ssl_cert_file = '{certificate}'
                  ssl_key_file = '{key}'
                  ssl_ca_file = '{cas}'
pg_hba.conf:      hostssl all all all cert
"""

PROTOCOL = Description(
    routing=DatabaseRule(
        name="postgres",
        alpn=("teleport-postgres",),
        direct_alpn=(ALPN,),
        direct=True,
        starttls=SSL_REQUEST,
        declined=(GSSENC_REQUEST,),
        cancel=(0, 0, None, None, *SSL_REQUEST[4:7], 0x2E),  # length, then 80877102; protocol 3.2 has longer secrets
        plaintext=(0, 0, None, None, 0, 3),  # length, then protocol 3.x
        plaintext_refusal=PostgresFront().refuse(Why.UNSUPPORTED, "TLS is required here: set sslmode=verify-full"),
    ),
    title="PostgreSQL",
    default_port=5432,
    front=PostgresFront,
    engine="monoport.agents.database.postgres",
    shell=Shell(
        program="psql",
        arguments=(f"{_WORDS} sslmode=disable",),
        install="apt-get install postgresql-client",
        quote=quoted,
        socket=".s.PGSQL.{port}",
    ),
    ways=_WAYS,
    passwords=True,
    listen_key="postgres_listen_addr",
    server=_SERVER,
    aliases=("postgresql",),
)
