"""Passwords: the same work for every name, five failures, few at a time."""

import asyncio

import pytest
from argon2 import PasswordHasher

from monoport.auth.passwords import AT_ONCE, MAX_FAILURES, MAX_WAITING, PREFIX, Passwords
from monoport.auth.refusals import Invalid, LoginLocked, TooBusy, WrongPassword
from monoport.auth.storage.memory import MemoryStorage
from monoport.auth.storage.sqlite import SqliteStorage


def fast() -> PasswordHasher:
    return PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture
def passwords(clock):
    return Passwords(clock, MemoryStorage(clock), fast())


async def test_the_right_password_is_right_and_another_is_wrong(passwords):
    stored = await passwords.hash("correct horse")
    assert stored.startswith("$argon2id$")
    assert await passwords.check("alice", "correct horse", stored) is None
    with pytest.raises(WrongPassword):
        await passwords.check("alice", "battery staple", stored)


async def test_an_unknown_name_costs_one_verification_as_a_known_one_does(passwords):
    stored = await passwords.hash("correct horse")
    await passwords.check("alice", "correct horse", stored)
    assert passwords.verifications == 1
    with pytest.raises(WrongPassword) as known:
        await passwords.check("alice", "wrong horse", stored)
    assert passwords.verifications == 2
    with pytest.raises(WrongPassword) as unknown:
        await passwords.check("nobody", "wrong horse", None)
    assert passwords.verifications == 3
    assert str(known.value) == str(unknown.value)


async def test_the_dummy_hash_has_no_password_that_lets_anybody_in(passwords):
    with pytest.raises(WrongPassword):
        await passwords.check("nobody", "no one has this password", None)


@pytest.mark.parametrize("known", [True, False])
async def test_five_failures_lock_known_and_unknown_names_alike(passwords, clock, known):
    stored = await passwords.hash("correct horse") if known else None
    for _ in range(MAX_FAILURES):
        with pytest.raises(WrongPassword):
            await passwords.check("alice", "wrong", stored)
    before = passwords.verifications
    for password in ("wrong", "correct horse"):
        with pytest.raises(LoginLocked, match="10 minutes"):
            await passwords.check("alice", password, stored)
    assert passwords.verifications == before, "a locked name costs no verification"
    clock.advance(minutes=9, seconds=50)
    with pytest.raises(LoginLocked):
        await passwords.check("alice", "correct horse", stored)
    clock.advance(seconds=11)
    if known:
        assert await passwords.check("alice", "correct horse", stored) is None
    else:
        with pytest.raises(WrongPassword):
            await passwords.check("alice", "correct horse", stored)


async def test_success_clears_the_count_and_forgiving_lifts_the_lock(passwords):
    stored = await passwords.hash("correct horse")
    for _ in range(2):
        for _ in range(MAX_FAILURES - 1):
            with pytest.raises(WrongPassword):
                await passwords.check("alice", "wrong", stored)
        await passwords.check("alice", "correct horse", stored)
    for _ in range(MAX_FAILURES):
        with pytest.raises(WrongPassword):
            await passwords.check("alice", "wrong", stored)
    await passwords.forgive("alice")
    assert await passwords.check("alice", "correct horse", stored) is None


async def test_a_burst_cannot_outrun_the_counter(passwords):
    stored = await passwords.hash("correct horse")
    tries = [passwords.check("alice", f"guess {number}", stored) for number in range(40)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(one, WrongPassword) for one in results) == MAX_FAILURES
    assert sum(isinstance(one, LoginLocked) for one in results) == 40 - MAX_FAILURES
    assert passwords.verifications == MAX_FAILURES


class Gate:
    """Counts how many verifications run at once, and lets them go on."""

    def __init__(self) -> None:
        self.inside = self.most = 0

    def verify(self, stored: str, password: str) -> bool:
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            return fast().verify(stored, password)
        finally:
            self.inside -= 1


async def test_only_a_few_verifications_run_at_once_and_only_so_many_wait(clock):
    gate = Gate()

    class Counting(PasswordHasher):
        def verify(self, hash: str, password: str) -> bool:  # type: ignore[override]
            return gate.verify(hash, password)

    passwords = Passwords(clock, MemoryStorage(clock), Counting(time_cost=1, memory_cost=8, parallelism=1))
    stored = await passwords.hash("correct horse")
    tries = [passwords.check(f"user{number}", "correct horse", stored) for number in range(MAX_WAITING + 30)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert gate.most <= AT_ONCE
    assert sum(isinstance(one, TooBusy) for one in results) == 30
    assert sum(one is None for one in results) == MAX_WAITING


async def test_names_that_strangers_try_do_not_fill_the_memory(passwords, monkeypatch):
    monkeypatch.setattr("monoport.auth.passwords.MAX_TRACKED", 3)
    for number in range(10):
        with pytest.raises(WrongPassword):
            await passwords.check(f"stranger{number}", "wrong", None)
    assert len(passwords._tries) == 3


async def test_tries_that_are_turned_away_make_nobodys_failures_forgotten(passwords, monkeypatch):
    monkeypatch.setattr("monoport.auth.passwords.MAX_TRACKED", 3)
    for _ in range(MAX_FAILURES):
        with pytest.raises(WrongPassword):
            await passwords.check("alice", "wrong", None)
    monkeypatch.setattr("monoport.auth.passwords.MAX_WAITING", 0)
    for number in range(10):
        with pytest.raises(TooBusy):
            await passwords.check(f"stranger{number}", "wrong", None)
    monkeypatch.setattr("monoport.auth.passwords.MAX_WAITING", MAX_WAITING)
    with pytest.raises(LoginLocked):
        await passwords.check("alice", "wrong", None)


async def test_short_and_overlong_passwords_are_refused_when_set(passwords):
    with pytest.raises(Invalid, match="at least 8"):
        await passwords.hash("short")
    with pytest.raises(Invalid, match="1024 octets"):
        await passwords.hash("x" * 1025)


async def test_an_overlong_guess_is_one_ordinary_failure(passwords):
    stored = await passwords.hash("correct horse")
    with pytest.raises(WrongPassword):
        await passwords.check("alice", "x" * 4096, stored)
    assert passwords.verifications == 1


async def test_raised_parameters_bring_a_new_hash(clock):
    stored = await Passwords(clock, MemoryStorage(clock), fast()).hash("correct horse")
    stronger = Passwords(clock, MemoryStorage(clock), PasswordHasher(time_cost=2, memory_cost=8, parallelism=1))
    new = await stronger.check("alice", "correct horse", stored)
    assert new is not None
    assert "t=2" in new
    assert await stronger.check("alice", "correct horse", new) is None


async def wrong(passwords: Passwords, name: str, times: int, stored: str | None = None) -> None:
    for _ in range(times):
        with pytest.raises(WrongPassword):
            await passwords.check(name, "wrong", stored)


@pytest.mark.parametrize("known", [True, False])
async def test_a_restart_keeps_the_lock_and_the_count(clock, tmp_path, known):
    store = await SqliteStorage.open(tmp_path / "auth.db", clock)
    before = Passwords(clock, store, fast())
    stored = await before.hash("correct horse") if known else None
    await wrong(before, "locked", MAX_FAILURES, stored)
    await wrong(before, "counted", MAX_FAILURES - 1, stored)
    await store.close()
    store = await SqliteStorage.open(tmp_path / "auth.db", clock)
    after = Passwords(clock, store, fast())
    with pytest.raises(LoginLocked, match="10 minutes"):
        await after.check("locked", "correct horse", stored)
    assert after.verifications == 0, "a locked name costs no verification after a restart either"
    await wrong(after, "counted", 1, stored)
    with pytest.raises(LoginLocked):
        await after.check("counted", "correct horse", stored)
    await after.forgive("counted")
    clock.advance(minutes=10, seconds=1)
    assert await store.range(PREFIX) == [], "it goes by itself"
    await store.close()
    store = await SqliteStorage.open(tmp_path / "auth.db", clock)
    await wrong(Passwords(clock, store, fast()), "locked", 1, stored)
    await store.close()


async def test_a_failure_of_any_name_is_one_write_and_success_leaves_nothing(clock):
    class Counting(MemoryStorage):
        def __init__(self, now):
            super().__init__(now)
            self.calls: list[str] = []

        async def put(self, key, value, expires=None):
            self.calls.append("put")
            return await super().put(key, value, expires)

        async def delete(self, key, revision=None):
            self.calls.append("delete")
            return await super().delete(key, revision)

    store = Counting(clock)
    passwords = Passwords(clock, store, fast())
    stored = await passwords.hash("correct horse")
    for name, hashed in (("alice", stored), ("nobody", None), ("no/name\0\udc80" + "x" * 5000, None)):
        store.calls.clear()
        await wrong(passwords, name, 2, hashed)
        assert store.calls == ["put", "put"]
    assert not any("alice" in item.key or b"alice" in item.value for item in await store.range("/"))
    store.calls.clear()
    await passwords.check("alice", "correct horse", stored)
    await passwords.check("alice", "correct horse", stored)
    assert store.calls == ["delete"], "who has not failed costs no write"


async def test_what_strangers_try_fills_the_storage_no_more_than_the_memory(clock, monkeypatch):
    monkeypatch.setattr("monoport.auth.passwords.MAX_TRACKED", 3)
    store = MemoryStorage(clock)
    passwords = Passwords(clock, store, fast())
    for number in range(10):
        await wrong(passwords, f"stranger{number}", 1)
    assert len(await store.range(PREFIX)) == 3


async def test_failures_long_apart_do_not_add_up(passwords, clock):
    for _ in range(MAX_FAILURES):
        await wrong(passwords, "alice", 1)
        clock.advance(minutes=10, seconds=1)
    await wrong(passwords, "alice", 1)
