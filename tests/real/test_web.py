"""The web routes with real HTTP clients."""

from __future__ import annotations

import json

import pytest

from .clients import Client, program
from .cluster import Cluster, Person


@pytest.mark.client(
    Client("curl", "web", "`curl --cacert certs.pem https://…/webapi/ping`", program("curl", "--version"))
)
def test_curl_reads_the_api_and_verifies_the_port(cluster: Cluster, alice: Person, need) -> None:
    cas = alice.home / ".tsh/keys/localhost/certs.pem"
    url = f"https://localhost:{cluster.port}/webapi/ping"
    done = alice.run(need("curl"), "-sS", "--cacert", cas, "-w", "\\n%{http_version} %{http_code}", url)
    body, _, last = done.stdout.rpartition("\n")
    assert json.loads(body)["cluster_name"] == "example.com"
    assert last.endswith(" 200")
    refused = alice.run(need("curl"), "-sS", "--capath", "/nowhere", "--cacert", "/dev/null", url, code=None)
    assert refused.returncode in (60, 77), "whoever does not trust the cluster's CA is warned"
