"""What every backend must do, in the words of the interface."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import timedelta, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monoport.auth.storage.interface import (
    BATCH,
    MAX_KEY,
    MAX_VALUE,
    AlreadyExistsError,
    Change,
    CompactedError,
    ConflictError,
    Item,
    NotFoundError,
    StorageError,
)


async def take(store, prefix, after, count):
    """The first `count` changes of a watch."""
    found = []
    async with aclosing(store.watch(prefix, after)) as changes:
        async for change in changes:
            found.append(change)
            if len(found) == count:
                break
    return found


# --- one key


async def test_what_was_put_is_got(store):
    assert await store.get("/a") is None
    revision = await store.put("/a", b"\x00\xff")
    assert await store.get("/a") == Item("/a", b"\x00\xff", revision)
    assert await store.get("/a/b") is None


async def test_revisions_only_grow_whatever_the_change(store):
    revisions = [await store.put("/a", b"1"), await store.put("/b", b""), await store.put("/a", b"1")]
    revisions.append(await store.compare_and_swap("/a", b"2", revisions[-1]))
    revisions.append(await store.delete("/a"))
    revisions.append(await store.create("/a", b"3"))
    assert revisions == sorted(set(revisions))
    assert (await store.get("/a")).revision == revisions[-1]
    assert (await store.snapshot("/")).revision == revisions[-1]


async def test_create_only_makes_what_is_not_there(store):
    revision = await store.create("/a", b"1")
    with pytest.raises(AlreadyExistsError, match="/a exists already"):
        await store.create("/a", b"2")
    assert await store.get("/a") == Item("/a", b"1", revision)


async def test_compare_and_swap_needs_the_very_revision(store):
    first = await store.put("/a", b"1")
    second = await store.compare_and_swap("/a", b"2", first)
    with pytest.raises(ConflictError, match=f"/a is at revision {second}, expected revision {first}"):
        await store.compare_and_swap("/a", b"3", first)
    with pytest.raises(ConflictError, match="/b is gone"):
        await store.compare_and_swap("/b", b"3", first)
    assert (await store.get("/a")).value == b"2"


async def test_delete_needs_the_key_and_if_asked_the_revision(store):
    first = await store.put("/a", b"1")
    second = await store.put("/a", b"2")
    with pytest.raises(ConflictError):
        await store.delete("/a", first)
    assert await store.delete("/a", second) > second
    assert await store.get("/a") is None
    with pytest.raises(NotFoundError):
        await store.delete("/a")
    with pytest.raises(ConflictError):
        await store.delete("/a", second)


async def test_a_refused_write_changes_nothing(store):
    await store.put("/a", b"1")
    before = await store.snapshot("/")
    for attempt in (store.create("/a", b"2"), store.compare_and_swap("/a", b"2", 99), store.delete("/b")):
        with pytest.raises(StorageError):
            await attempt
    assert await store.snapshot("/") == before


@pytest.mark.parametrize("key", ["", "a", "/", "//", "/a/", "/a//b", "/a\n", "/\x00", "/" + "k" * MAX_KEY, "/\ud800"])
async def test_what_is_no_key_is_refused(store, key):
    for attempt in (
        store.get(key),
        store.put(key, b""),
        store.create(key, b""),
        store.compare_and_swap(key, b"", 1),
        store.delete(key),
    ):
        with pytest.raises(ValueError, match="key"):
            await attempt


async def test_values_are_bounded_and_expiries_have_a_zone(store, clock):
    await store.put("/a", b"v" * MAX_VALUE)
    for write in (
        lambda *rest: store.put("/a", *rest),
        lambda *rest: store.create("/b", *rest),
        lambda value, *rest: store.compare_and_swap("/a", value, 1, *rest),
    ):
        with pytest.raises(ValueError, match="limit"):
            await write(b"v" * (MAX_VALUE + 1))
        with pytest.raises(ValueError, match="time zone"):
            await write(b"", clock.now.replace(tzinfo=None))


# --- expiry


async def test_a_key_is_gone_at_its_expiry_for_every_call(store, clock):
    revision = await store.put("/a", b"1", clock.later(10))
    clock.advance(9.999999)
    assert (await store.get("/a")).expires == clock.later(0.000001)
    clock.advance(0.000001)
    assert await store.get("/a") is None
    assert await store.range("/") == []
    with pytest.raises(ConflictError):
        await store.compare_and_swap("/a", b"2", revision)
    with pytest.raises(NotFoundError):
        await store.delete("/a")
    assert await store.create("/a", b"3") > revision
    assert (await store.get("/a")).value == b"3"


async def test_a_write_sets_or_clears_the_expiry(store, clock):
    await store.put("/a", b"1", clock.later(10))
    await store.put("/a", b"2", clock.later(20).astimezone(timezone(timedelta(hours=5))))
    clock.advance(15)
    assert (await store.get("/a")).expires == clock.later(5)
    await store.put("/a", b"3")
    clock.advance(1000)
    assert await store.get("/a") is not None
    assert await store.sweep() == 0


async def test_a_sweep_tells_watchers_what_expired(store, clock):
    await store.put("/a", b"1", clock.later(10))
    last = await store.put("/b", b"1", clock.later(30))
    assert await store.sweep() == 0
    clock.advance(10)
    assert await store.sweep() == 1
    assert await store.sweep() == 0
    assert await take(store, "/", last, 1) == [Change(last + 1, "/a", None)]


# --- ranges


async def test_a_range_is_the_key_and_what_is_under_it_in_byte_order(store):
    keys = [
        "/a",
        "/a/b",
        "/a/b/c",
        "/a-b",
        "/a/",
        "/ab",
        "/a0",
        "/a.",
        "/A",
        "/a/é",
        "/a/z",
        "/a/\U0001f600",
        "/a/\uffee",
    ]
    keys.remove("/a/")
    for key in reversed(keys):
        await store.put(key, key.encode())
    under = sorted((key for key in keys if key == "/a" or key.startswith("/a/")), key=str.encode)
    assert [item.key for item in await store.range("/a")] == under
    assert [item.key for item in await store.range("/a/")] == under
    assert [item.key for item in await store.range("/")] == sorted(keys, key=str.encode)
    assert [item.key for item in await store.range("/a/b")] == ["/a/b", "/a/b/c"]
    assert await store.range("/nothing") == []


@pytest.mark.parametrize("prefix", ["", "a", "//", "/a//"])
async def test_what_is_no_prefix_is_refused(store, prefix):
    with pytest.raises(ValueError, match=r"key|prefix"):
        await store.range(prefix)
    with pytest.raises(ValueError, match=r"key|prefix"):
        await take(store, prefix, 0, 1)


# --- watches


async def test_a_watch_tells_every_change_behind_its_revision_once_in_order(store):
    await store.put("/x/a", b"0")
    start = await store.snapshot("/x")
    first = await store.put("/x/a", b"1")
    await store.put("/xy", b"other")
    second = await store.create("/x/b", b"2")
    third = await store.delete("/x/a")
    assert await take(store, "/x", start.revision, 3) == [
        Change(first, "/x/a", Item("/x/a", b"1", first)),
        Change(second, "/x/b", Item("/x/b", b"2", second)),
        Change(third, "/x/a", None),
    ]
    assert [change.revision for change in await take(store, "/x", second, 1)] == [third]


async def test_a_watch_waits_for_what_is_to_come(store):
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(take(store, "/", 0, 2))
        revisions = [await store.put("/a", b"1"), await store.put("/b", b"2")]
    assert [change.revision for change in waiting.result()] == revisions


async def test_many_writers_and_watchers_lose_and_repeat_nothing(store):
    count = 3 * BATCH
    async with asyncio.TaskGroup() as group:
        watchers = [group.create_task(take(store, "/", 0, count)) for _ in range(4)]
        for number in range(count):
            group.create_task(store.put(f"/{number % 7}/{number}", b""))
    for watcher in watchers:
        assert [change.revision for change in watcher.result()] == list(range(1, count + 1))


async def test_a_slow_watcher_gets_everything_that_is_kept(store):
    async with aclosing(store.watch("/", 0)) as changes:
        first = await store.put("/a", b"")
        assert (await anext(changes)).revision == first
        revisions = [await store.put("/a", str(number).encode()) for number in range(BATCH + 10)]
        assert [(await anext(changes)).revision for _ in revisions] == revisions


async def test_a_watcher_too_far_behind_is_told_to_begin_again(open_store):
    store = await open_store(history=5)
    for number in range(6):
        await store.put("/a", str(number).encode())
    with pytest.raises(CompactedError):
        await take(store, "/", 0, 1)
    assert [change.revision for change in await take(store, "/", 1, 5)] == [2, 3, 4, 5, 6]


async def test_a_watch_from_a_revision_that_never_was_is_told_to_begin_again(store):
    await store.put("/a", b"")
    with pytest.raises(CompactedError):
        await take(store, "/", 2, 1)


async def test_a_watcher_that_falls_behind_while_it_reads_is_told_so(open_store):
    store = await open_store(history=5)
    async with aclosing(store.watch("/", 0)) as changes:
        await store.put("/a", b"")
        assert (await anext(changes)).revision == 1
        for number in range(20):
            await store.put("/a", str(number).encode())
        with pytest.raises(CompactedError):
            await anext(changes)


async def test_closing_ends_watches_and_refuses_calls(store):
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(take(store, "/", 0, 99))
        await store.put("/a", b"")
        await store.close()
    assert len(waiting.result()) <= 1
    await store.close()
    with pytest.raises(StorageError, match="closed"):
        await store.get("/a")
    with pytest.raises(StorageError, match="closed"):
        await store.put("/a", b"")


# --- concurrency


async def test_of_many_creators_one_wins(store):
    async def create(number: int) -> bool:
        try:
            await store.create("/a", str(number).encode())
        except AlreadyExistsError:
            return False
        return True

    results = await asyncio.gather(*(create(number) for number in range(50)))
    assert results.count(True) == 1
    assert (await store.get("/a")).value == str(results.index(True)).encode()


async def test_counting_with_compare_and_swap_loses_no_step(store):
    await store.put("/n", b"0")

    async def step() -> None:
        while True:
            item = await store.get("/n")
            try:
                await store.compare_and_swap("/n", str(int(item.value) + 1).encode(), item.revision)
            except ConflictError:
                continue
            return

    async with asyncio.TaskGroup() as group:
        for _ in range(30):
            group.create_task(step())
    assert (await store.get("/n")).value == b"30"


async def test_a_cancelled_caller_disturbs_nobody(store):
    async with asyncio.TaskGroup() as group:
        doomed = group.create_task(store.put("/a", b"1"))
        other = group.create_task(store.put("/b", b"2"))
        await asyncio.sleep(0)
        doomed.cancel()
    assert other.result() > 0
    assert (await store.get("/b")).value == b"2"


# --- against a model

keys = st.sampled_from(["/a", "/a/b", "/ab", "/c"])
steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "create", "swap", "delete", "expire", "sweep"]), keys, st.integers(0, 3), st.booleans()
    ),
    max_size=25,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
async def test_any_sequence_ends_as_in_a_dictionary_and_as_its_watch_tells(open_store, clock, steps):
    store = await open_store()
    model: dict[str, tuple[bytes, int]] = {}
    for number, (step, key, guess, right) in enumerate(steps):
        value = str(number).encode()
        revision = model[key][1] if right and key in model else guess * 1000
        try:
            match step:
                case "put":
                    model[key] = value, await store.put(key, value)
                case "create":
                    model[key] = value, await store.create(key, value)
                case "swap":
                    model[key] = value, await store.compare_and_swap(key, value, revision)
                case "delete":
                    await store.delete(key, revision if guess else None)
                    del model[key]
                case "expire":
                    await store.put(key, value, clock.now)
                    model.pop(key, None)
                case "sweep":
                    await store.sweep()
        except (AlreadyExistsError, ConflictError, NotFoundError):
            assert (key in model) is (step == "create") or revision != model[key][1]
    await store.sweep()
    snapshot = await store.snapshot("/")
    assert {item.key: (item.value, item.revision) for item in snapshot.items} == model
    replayed: dict[str, tuple[bytes, int]] = {}
    for change in await take(store, "/", 0, snapshot.revision) if snapshot.revision else []:
        if change.item is None:
            replayed.pop(change.key)
        else:
            replayed[change.key] = change.item.value, change.item.revision
    assert replayed == model
