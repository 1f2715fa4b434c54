"""Slots: how many turns this worker speaks at once."""

from collections.abc import Mapping

import anyio


class Slot:
    """One taken slot. Giving it back twice is harmless."""

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
        self._free = dict(models)
        self.total = min(total or sum(models.values()), sum(models.values()))
        self._free_in_all = self.total
        self._changed = anyio.Event()

    @property
    def free(self) -> int:
        """Free slots in all."""
        return self._free_in_all

    def is_free(self, model: str) -> bool:
        """Whether a turn of the model could start."""
        return self._free_in_all > 0 and self._free[model] > 0

    def try_take(self, model: str) -> Slot | None:
        """A slot for a turn of the model, if one is free."""
        if not self.is_free(model):
            return None
        self._free[model] -= 1
        self._free_in_all -= 1
        self.announce()
        return Slot(self, model)

    def give_back(self, slot: Slot) -> None:
        """Called by ``Slot.release``."""
        self._free[slot.model] += 1
        self._free_in_all += 1
        self.announce()

    async def wait_taken(self, model: str) -> None:
        """Wait until no turn of the model could start."""
        while self.is_free(model):
            await self._changed.wait()

    async def wait_change(self) -> None:
        """Wait until a slot is taken or given back, or ``announce`` is called."""
        await self._changed.wait()

    def announce(self) -> None:
        """Let whoever waits look again."""
        self._changed.set()
        self._changed = anyio.Event()
