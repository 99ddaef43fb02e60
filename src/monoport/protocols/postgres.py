"""PostgreSQL: values only."""

from monoport.protocols.description import Description, Shell
from monoport.routing.rows import DatabaseRule
from monoport.wire.front import Why
from monoport.wire.postgres.front import ALPN, PostgresFront
from monoport.wire.postgres.messages import GSSENC_REQUEST, SSL_REQUEST

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
        arguments=("host='{host}' port={port} user='{user}' dbname='{database}' sslmode=disable",),
        install="apt-get install postgresql-client",
        escaped="\\'",
        socket=".s.PGSQL.{port}",
    ),
    aliases=("postgresql",),
)
