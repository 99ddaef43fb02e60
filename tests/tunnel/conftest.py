"""A proxy's tunnels, and a permit for its first node."""

import pytest

from monoport.access.decide import Permit

from .world import Cas, World, node, permit_for


@pytest.fixture
def world() -> World:
    found = World(Cas())
    found.listed = [node("n1", "web"), node("n2", "db")]
    return found


@pytest.fixture
def permit(world: World) -> Permit:
    return permit_for(world.listed[0])
