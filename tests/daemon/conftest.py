"""A cluster's auth service, and configurations for daemons that stand on it."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from monoport.auth.local import LocalAuth
from monoport.config import Config
from monoport.config.load import parse

from ..scenarios.cluster import CHEAP, CLUSTER, PUBLIC, Cluster  # noqa: TID252 # tests are no package


@dataclass
class Auth:
    """The service, not serving yet; `start` has it serve until the test is over."""

    local: LocalAuth
    group: asyncio.TaskGroup
    stack: AsyncExitStack

    async def start(self) -> None:
        running = self.group.create_task(self.local.run())
        self.stack.callback(running.cancel)
        await self.local.ready.wait()


@pytest.fixture
async def auth(tmp_path: Path) -> AsyncIterator[Auth]:
    folder = tmp_path / "auth"
    folder.mkdir()
    async with AsyncExitStack() as stack:
        local = await stack.enter_async_context(await LocalAuth.open(folder, CLUSTER, hasher=CHEAP))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        yield Auth(local, group, stack)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Auth service and proxy."""
    async with Cluster.running(tmp_path) as made:
        yield made


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., Config]:
    """`configured(*sections)` -> a configuration of a daemon with auth and proxy on a free port of loopback."""

    def make(*sections: str, proxy: str = "") -> Config:
        return parse(
            f"version: v3\n"
            f"teleport: {{data_dir: {tmp_path / 'data'}, nodename: here}}\n"
            f"auth_service: {{enabled: yes, cluster_name: {CLUSTER}, listen_addr: '127.0.0.1:0'}}\n"
            f"proxy_service: {{enabled: yes, web_listen_addr: '127.0.0.1:0', public_addr: ['{PUBLIC}:443']{proxy}}}\n"
            + "".join(f"{section}\n" for section in sections),
            str(tmp_path / "monoport.yaml"),
        )

    return make


@pytest.fixture
def process() -> Iterator[None]:
    """What a daemon sets for its whole process, put back."""
    handlers, level = logging.root.handlers[:], logging.root.level
    handled = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    thresholds, descriptors = gc.get_threshold(), resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, descriptors)
    for number, handler in handled.items():
        signal.signal(number, handler)
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    gc.unfreeze()
    gc.set_threshold(*thresholds)
