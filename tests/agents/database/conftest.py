"""One set of CAs for all tests of the database agent."""

import pytest

from .world import Cluster


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    return Cluster()
