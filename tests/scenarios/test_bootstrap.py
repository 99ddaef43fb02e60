"""First login and joining: no certificate yet, no DNS, nothing to believe but a CA pin."""

import pytest

from monoport.auth import keys
from monoport.auth.authorities import TrustedCas, pin
from monoport.client.front import BOOTSTRAP, blind_context
from monoport.client.webapi import WebApi
from monoport.errors import Failure
from monoport.net.tls import connect_tls

from .cluster import PASSWORD, Cluster


async def test_login_by_ca_pin(cluster: Cluster) -> None:
    """`tsh login --ca-pin=…`: the CA over a connection that is not believed, the password over one that is."""
    await cluster.user("alice")
    (known,) = cluster.auth.pins  # from `tctl status`

    unverified = await connect_tls(cluster.connect(), blind_context(), server_hostname=BOOTSTRAP)
    offered = TrustedCas.from_json(await WebApi(unverified, BOOTSTRAP).get("/webapi/cas"))
    assert [pin(pem) for pem in offered.host] == [known]

    key = keys.generate()
    wanted = {"user": "alice", "public_key": key.public, "ssh_public_key": key.ssh_public}
    verified = WebApi(await cluster.tls("http/1.1", sni=BOOTSTRAP), BOOTSTRAP)
    granted = await verified.post("/webapi/login", wanted | {"password": PASSWORD})
    assert granted["user"] == "alice"
    assert granted["certificate"].startswith("-----BEGIN CERTIFICATE-----")

    with pytest.raises(Failure, match="wrong user name or password"):
        await verified.post("/webapi/login", wanted | {"password": "guess"})


async def test_join_with_a_token(cluster: Cluster) -> None:
    """An agent's first start: `tctl tokens add --type=node` on one machine, the printed configuration on the other."""
    made = await cluster.admin.tokens_add(["node"])
    key = keys.generate()
    asked = {
        "token": made.token,
        "name": "web",
        "public_key": key.public,
        "ssh_public_key": key.ssh_public,
        "names": [],
    }

    proxy = WebApi(await cluster.tls("http/1.1", sni=BOOTSTRAP), BOOTSTRAP)
    with pytest.raises(Failure, match="token"):
        await proxy.post("/webapi/join", asked | {"roles": ["db"]})
    granted = await proxy.post("/webapi/join", asked | {"roles": ["node"]})

    assert granted["cluster"] == cluster.auth.cas.cluster
    assert granted["ssh_certificate"].startswith("ecdsa-sha2-nistp256-cert-v01@openssh.com ")
