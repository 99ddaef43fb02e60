"""A proxy's tunnels, and a permit for its first node."""

import pytest

from monoport.access.decide import Permit

from .world import Cas, PlainWorld, World, node, permit_for


@pytest.fixture(params=[World, PlainWorld], ids=["behind-tls", "plain"])
def world(request: pytest.FixtureRequest) -> World:
    """The agents' end is the same, whether ALPN has said that they come or only their certificate does."""
    found: World = request.param(Cas())
    found.listed = [node("n1", "web"), node("n2", "db")]
    return found


@pytest.fixture
def permit(world: World) -> Permit:
    return permit_for(world.listed[0])
