"""A cluster for every story, and a database server that plays its part."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .cluster import Cluster
from .psql import Server


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Auth service and proxy; the story adds the rest."""
    async with Cluster.running(tmp_path) as made:
        yield made


@pytest.fixture
async def server(cluster: Cluster) -> AsyncIterator[Server]:
    """A PostgreSQL server on loopback with a certificate of the cluster's database CA."""
    async with Server.running(cluster) as made:
        yield made
