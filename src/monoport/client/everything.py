"""`tsh proxy all`: a local end of every database of the user, in one process, until it is stopped.

Belongs here: which ends there are and what is known of each. Does not belong here: bytes (localproxy.py), certificates
(databases.py, renewal.py), how the table looks (cli).
"""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from monoport.access.resources import Database
from monoport.client import databases
from monoport.client.foreground import until_stopped
from monoport.client.front import Front
from monoport.client.listening import address_of, listen, stable_port
from monoport.client.localproxy import LocalProxy, Wrapping
from monoport.client.names import Address
from monoport.client.profile import Home, Profile
from monoport.client.renewal import Keeper
from monoport.client.ways import filled, words
from monoport.errors import Failure

# Seconds between looks at what there is: within this, a database that comes or goes, or is down, is noticed.
AGAIN = 10.0


@dataclass(slots=True)
class End:
    """One database's local end, as the table shows it.

    Args:
        name, protocol: of the database, the protocol's title.
        address: where it listens, "" while it does not. use: a line to paste. connections: that run now.
        problem: why it does not listen, or cannot be renewed. trouble: why the cluster could not be reached by it last.
        state: what its agent says of the real server: up, down and why, or "" if nothing is known.
    """

    name: str
    protocol: str
    address: str = ""
    use: str = ""
    problem: str = ""
    trouble: str = ""
    state: str = ""
    _proxy: LocalProxy | None = field(default=None, repr=False)

    @property
    def wrong(self) -> str:
        """Why it cannot be used now, "" if it can as far as is known."""
        return self.problem or self.trouble or (self.state if self.state.startswith("down") else "")

    @property
    def connections(self) -> int:
        """How many there are now."""
        return self._proxy.joined if self._proxy is not None else 0

    async def serve(self, home: Home, profile: Profile, folder: Path, database: Database) -> None:
        """Listen and join connections until cancelled; what is wrong is kept in `problem`."""
        try:
            await self._serve(home, profile, folder, database)
        except Failure as error:
            self.problem = str(error)
        finally:
            self.address, self._proxy = "", None

    async def _serve(self, home: Home, profile: Profile, folder: Path, database: Database) -> None:
        login = await databases.borrow(home, profile, folder, databases.Wanted(database.name))
        protocol = databases.protocol_of(login.destination)
        wrapping = Wrapping(Front(profile), protocol.alpn[0], login.credentials)
        wrapping.context()
        sockets = listen(
            Address("127.0.0.1", stable_port(profile.cluster, database.name)), lends_identity=True, or_next=True
        )
        keeper = Keeper(home, profile, login, wrapping.adopt, self._note)
        self._proxy = LocalProxy(wrapping, sockets, self._failed, protocol.front)

        def check() -> None:
            keeper.check()
            self.problem = self.trouble = ""  # what was wrong with an earlier connection is over

        self._proxy.check = check
        bound = address_of(sockets)
        self.use = filled(protocol.ways.lent[0], words(home, profile, login, bound)) if protocol.ways.lent else ""
        self.address = str(bound)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._proxy.serve())
                group.create_task(keeper.run())
        except* Failure as failed:
            raise failed.exceptions[0] from None

    def _note(self, problem: str) -> None:
        self.problem = problem

    def _failed(self, why: str) -> None:
        self.trouble = why


async def everything(
    home: Home,
    profile: Profile,
    show: Callable[[Mapping[str, End]], Awaitable[None]],
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Serves every database of the user until SIGINT or SIGTERM, those that appear later too.

    Args:
        home, profile: the user's login.
        show: runs beside it, with the ends by name, which change while it looks at them.
        sleep: pausing.

    Raises:
        Failure: there is none, the cluster cannot be asked, or the user has logged out.
    """
    with tempfile.TemporaryDirectory(prefix="tsh-all-") as folder:
        kept = _Ends(home, profile, Path(folder), sleep)
        there = await databases.databases(home, profile)
        if not there:
            raise Failure(f"there is no database in {profile.cluster} that you may use")
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(kept.run(there)), group.create_task(_showing(show, kept.ends))]
                await until_stopped()
                for task in tasks:
                    task.cancel()
        except* Failure as failed:
            raise failed.exceptions[0] from None


async def _showing(show: Callable[[Mapping[str, End]], Awaitable[None]], ends: Mapping[str, End]) -> None:
    await show(ends)


@dataclass(slots=True)
class _Ends:
    """The local ends of what there is, by name."""

    home: Home
    profile: Profile
    folder: Path
    sleep: Callable[[float], Awaitable[None]]
    ends: dict[str, End] = field(default_factory=dict)
    _running: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def run(self, there: list[Database]) -> None:
        """Open an end for every database that is there and close those of others, again and again."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._follow(there, group)
                await self.sleep(AGAIN)
                found = self.home.load(self.profile.proxy.host)
                if found is None:
                    raise Failure(f"you have logged out of {self.profile.cluster}")
                self.profile = found
                try:
                    there, trouble = await databases.databases(self.home, self.profile), ""
                except Failure as error:
                    trouble = str(error)
                for end in self.ends.values():
                    end.trouble = trouble

    def _follow(self, there: list[Database], group: asyncio.TaskGroup) -> None:
        listed = {each.name: each for each in there}
        for name in [name for name in self._running if name not in listed]:
            self._running.pop(name).cancel()
            del self.ends[name]
        for name, each in listed.items():
            if name not in self._running or self._running[name].done():  # one that could not be opened is tried again
                end = self.ends[name] = End(name, databases.title_of(each))
                self._running[name] = group.create_task(end.serve(self.home, self.profile, self.folder, each))
            self.ends[name].state = databases.state_of(each)
