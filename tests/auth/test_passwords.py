"""Passwords: the same work for every name, five failures, few at a time."""

import asyncio

import pytest
from argon2 import PasswordHasher

from monoport.auth.passwords import AT_ONCE, MAX_FAILURES, MAX_WAITING, Passwords
from monoport.auth.refusals import Invalid, LoginLocked, TooBusy, WrongPassword


def fast() -> PasswordHasher:
    return PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture
def passwords(clock):
    return Passwords(clock, fast())


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
    passwords.forgive("alice")
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

    passwords = Passwords(clock, Counting(time_cost=1, memory_cost=8, parallelism=1))
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
    stored = await Passwords(clock, fast()).hash("correct horse")
    stronger = Passwords(clock, PasswordHasher(time_cost=2, memory_cost=8, parallelism=1))
    new = await stronger.check("alice", "correct horse", stored)
    assert new is not None
    assert "t=2" in new
    assert await stronger.check("alice", "correct horse", new) is None
