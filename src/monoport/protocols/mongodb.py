"""MongoDB: values only."""

from functools import partial
from urllib.parse import quote

from monoport.protocols.description import Description, Form, Shell, Ways
from monoport.routing.rows import DatabaseRule
from monoport.wire.mongodb.front import MongoFront

_PERCENT = partial(quote, safe="")
# Drivers take a connection string for a list of servers to look for others by, unless it says that this is the one.
# A user in it has to say how it is proven. The second {unnamed} prints nothing: it has its brackets left out with it.
_UNNAMED = "[&authMechanism=MONGODB-X509{unnamed:.0}]"
_LENT = f"mongodb://[{{unnamed}}@]{{address}}/[{{database}}]?directConnection=true{_UNNAMED}"
_SOCKET = f"mongodb://[{{unnamed}}@]{{host}}/[{{database}}]?directConnection=true{_UNNAMED}"
_OWN = f"{_LENT}&tls=true&tlsCAFile={{cas}}&tlsCertificateKeyFile={{bundle}}"

_SERVER = """\
mongod.conf:      net:
                    tls:
                      mode: requireTLS
                      certificateKeyFile: {bundle}
                      CAFile: {cas}
                  setParameter:
                    authenticationMechanisms: MONGODB-X509
its one file:     cat {certificate} {key} > {bundle}
each user:        db.getSiblingDB("$external").runCommand({{createUser: "CN=NAME", roles: [...]}})
"""

PROTOCOL = Description(
    routing=DatabaseRule(name="mongodb", alpn=("teleport-mongodb",), by_name=True),
    title="MongoDB",
    default_port=27017,
    front=MongoFront,
    engine="monoport.agents.database.mongodb",
    shell=Shell(
        program="mongosh",
        arguments=("mongodb://{socket}/[{database}]?directConnection=true",),
        install="npm install --global mongosh",
        quote=_PERCENT,
        socket="mongodb.sock",
        socket_ending=".sock",
    ),
    ways=Ways(
        lent=(Form("mongosh", _LENT, _PERCENT, "mongosh"), Form("URI", _LENT, _PERCENT)),
        socket=(Form("mongosh", _SOCKET, _PERCENT, "mongosh"), Form("URI", _SOCKET, _PERCENT)),
        own=(Form("mongosh", _OWN, _PERCENT, "mongosh"), Form("URI", _OWN, _PERCENT)),
    ),
    needs_database=False,
    passwords=True,
    listen_key="mongo_listen_addr",
    server=_SERVER,
    aliases=("mongo",),
)
