"""Slots: how many turns this worker speaks at once."""

from collections.abc import Mapping

import anyio


class Slot:
    """One taken slot. Releasing it twice is harmless."""

    def __init__(self, slots: "Slots", model: str) -> None:
        self._slots: Slots | None = slots
        self.model = model

    def release(self) -> None:
        """Give it back."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.give_back(self)


class Slots:
    """A worker's slots: each model's own, and a limit on all of them together.

    Args:
        models: Slots of each model.
        total: At most so many in all; 0 is their sum.
    """

    def __init__(self, models: Mapping[str, int], total: int = 0) -> None:
        self._slots = dict(models)
        self._taken = dict.fromkeys(models, 0)
        self._limit = total
        self._changed = anyio.Event()

    @property
    def total(self) -> int:
        """Slots in all."""
        slots = sum(self._slots.values())
        return min(self._limit or slots, slots)

    @property
    def free(self) -> int:
        """Free slots in all; below 0 while more turns run than there are slots since a resize."""
        return self.total - sum(self._taken.values())

    def is_free(self, model: str) -> bool:
        """Whether a turn of the model could start."""
        return self.free > 0 and self._taken[model] < self._slots[model]

    def try_take(self, model: str) -> Slot | None:
        """A slot for a turn of the model, if one is free."""
        if not self.is_free(model):
            return None
        self._taken[model] += 1
        self.announce()
        return Slot(self, model)

    def give_back(self, slot: Slot) -> None:
        """Called by ``Slot.release``."""
        self._taken[slot.model] -= 1
        self.announce()

    def resize(self, model: str, slots: int) -> None:
        """Give a model more slots, or fewer. Turns that run keep theirs until they end."""
        if self._slots[model] != slots:
            self._slots[model] = slots
            self.announce()

    async def wait_taken(self, model: str) -> None:
        """Wait until no turn of the model could start."""
        while self.is_free(model):
            await self._changed.wait()

    async def wait_change(self) -> None:
        """Wait until slots are taken, given back or resized, or ``announce`` is called."""
        await self._changed.wait()

    def announce(self) -> None:
        """Wake the tasks that wait for a change."""
        self._changed.set()
        self._changed = anyio.Event()
