"""Every registered protocol, and a cluster to try it in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from monoport import protocols
from monoport.protocols.description import Description

from ..scenarios.cluster import Cluster  # noqa: TID252 # tests are no package
from .ends import ends


@pytest.fixture(params=protocols.TABLE.values(), ids=protocols.TABLE)
def protocol(request: pytest.FixtureRequest) -> Description:
    """Each protocol of the table."""
    found: Description = request.param
    return found


@pytest.fixture
def peer(protocol: Description) -> Any:
    """Its two ends."""
    return ends(protocol)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Auth service and proxy."""
    async with Cluster.running(tmp_path) as made:
        yield made
