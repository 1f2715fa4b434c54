"""Slots: what is free, who is woken, and that none gets lost."""

from collections.abc import Awaitable, Callable

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicefleet.worker.models.slots import Slot, Slots

pytestmark = pytest.mark.anyio


def test_each_model_has_its_own() -> None:
    slots = Slots({"a": 1, "b": 2})
    assert (slots.total, slots.free) == (3, 3)
    taken = slots.try_take("a")
    assert taken is not None
    assert taken.model == "a"
    assert slots.try_take("a") is None
    assert slots.is_free("b")
    assert slots.free == 2
    taken.release()
    assert slots.is_free("a")


def test_all_together_have_a_limit() -> None:
    slots = Slots({"a": 4, "b": 4}, total=2)
    assert slots.total == 2
    first = slots.try_take("a")
    assert first is not None
    assert slots.try_take("b") is not None
    assert not slots.is_free("a")
    assert slots.try_take("b") is None
    first.release()
    assert slots.try_take("b") is not None


def test_the_limit_is_never_more_than_there_are() -> None:
    assert Slots({"a": 1, "b": 2}, total=100).total == 3
    assert Slots({}, total=5).total == 0


def test_giving_back_twice_is_harmless() -> None:
    slots = Slots({"a": 1})
    slot = slots.try_take("a")
    assert slot is not None
    slot.release()
    slot.release()
    assert slots.free == 1
    assert slots.try_take("a") is not None
    slot.release()
    assert slots.free == 0


def test_fewer_slots_cut_no_turn() -> None:
    slots = Slots({"a": 3, "b": 1})
    taken = [slots.try_take("a") for _ in range(3)]
    slots.resize("a", 1)
    assert (slots.total, slots.free) == (2, -1)
    assert not slots.is_free("a")
    assert not slots.is_free("b"), "there are more turns than slots"
    for slot, free in zip(taken, (0, 1, 2), strict=True):
        assert slot is not None
        assert not slots.is_free("a")
        slot.release()
        assert slots.free == free
    assert slots.is_free("a")


def test_more_slots_can_be_taken_up_to_the_limit_of_all() -> None:
    slots = Slots({"a": 1, "b": 1}, total=4)
    assert slots.total == 2
    slots.resize("a", 8)
    assert slots.total == slots.free == 4
    assert all(slots.try_take("a") for _ in range(4))
    assert not slots.is_free("a")
    slots.resize("a", 0)
    assert (slots.total, slots.free) == (1, -3)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.booleans() | st.integers(0, 4)), max_size=50),
    st.integers(0, 6),
)
def test_none_gets_lost(steps: list[tuple[str, bool | int]], total: int) -> None:
    slots = Slots({"a": 2, "b": 3}, total)
    taken: list[Slot] = []
    for model, take in steps:
        if not isinstance(take, bool):
            slots.resize(model, take)
        elif take:
            free = slots.is_free(model)
            slot = slots.try_take(model)
            assert (slot is not None) is free
            taken += [slot] if slot else []
        elif taken:
            taken.pop(0).release()
        assert slots.free == slots.total - len(taken)
    for slot in taken:
        slot.release()
    assert slots.free == slots.total
    slots.resize("a", 2)
    slots.resize("b", 3)
    assert slots.free == slots.total
    assert all(slots.is_free(model) for model in "ab")


async def is_woken(wait: Callable[[], Awaitable[None]], act: Callable[[], object]) -> bool:
    """Whether ``act`` ends ``wait``, which does not end before."""
    woken = False
    async with anyio.create_task_group() as tasks:

        async def waiter() -> None:
            nonlocal woken
            await wait()
            woken = True

        tasks.start_soon(waiter)
        await anyio.wait_all_tasks_blocked()
        assert not woken
        act()
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    return woken


async def test_who_waits_for_a_change_is_woken() -> None:
    slots = Slots({"a": 1, "b": 1})
    slot = slots.try_take("a")
    assert slot is not None
    assert await is_woken(slots.wait_change, slot.release)
    assert await is_woken(slots.wait_change, lambda: slots.try_take("b"))
    assert await is_woken(slots.wait_change, slots.announce)
    assert await is_woken(slots.wait_change, lambda: slots.resize("a", 2))
    assert not await is_woken(slots.wait_change, lambda: slots.resize("a", 2))
    assert not await is_woken(slots.wait_change, lambda: slots.try_take("b"))


async def test_who_waits_for_the_last_slot_to_go_is_woken_by_nothing_less() -> None:
    slots = Slots({"a": 2, "b": 2}, total=2)
    assert not await is_woken(lambda: slots.wait_taken("a"), slots.announce)
    assert not await is_woken(lambda: slots.wait_taken("a"), lambda: slots.try_take("b"))
    assert await is_woken(lambda: slots.wait_taken("a"), lambda: slots.try_take("b"))
    await slots.wait_taken("a")  # at once
