"""PostgreSQL: values only."""

from monoport.protocols.description import Description, Shell
from monoport.wire.postgres.front import ALPN, PostgresFront
from monoport.wire.postgres.messages import SSL_REQUEST

PROTOCOL = Description(
    name="postgres",
    title="PostgreSQL",
    alpn=("teleport-postgres",),
    direct_alpn=(ALPN,),
    starttls=SSL_REQUEST,
    default_port=5432,
    front=PostgresFront,
    engine="monoport.agents.database.postgres",
    shell=Shell(
        program="psql",
        arguments=("host={host} port={port} user={user} dbname={database} sslmode=disable",),
        install="apt-get install postgresql-client",
    ),
    aliases=("postgresql",),
)
