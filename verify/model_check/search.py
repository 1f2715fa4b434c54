"""Breadth-first search: the first violation that it finds has the shortest trace."""

import time
from array import array
from collections import deque
from typing import NamedTuple

from verify.model_check.state import State, Violation
from verify.model_check.world import World


class Found(NamedTuple):
    """What was found. ``broken`` is the violated invariant, ``trace`` the steps that lead to it."""

    states: int
    transitions: int
    executed: int
    seconds: float
    exhausted: bool
    broken: str = ""
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = (
            f"{self.states} states, {self.transitions} transitions, "
            f"{self.executed} calls executed, {self.seconds:.1f} s"
            f"{'' if self.exhausted else ', not exhausted'}"
        )
        if self.broken:
            steps = "\n".join(f"{i:3} {label}" for i, label in enumerate(self.trace, 1))
            said += f"\n{steps}\n=> {self.broken}"
        return said


class Search:
    """One exploration, to exhaustion or to ``most`` states."""

    def __init__(self, world: World, most: int = 10_000_000) -> None:
        self._world = world
        self._most = most
        self._numbers: dict[State, int] = {}
        self._states: list[State] = []
        self._parents = array("l")
        self._from, self._to = array("l"), array("l")
        self._transitions = 0

    def run(self) -> Found:
        """Explore every state; then check that the fleet can finish from each."""
        begun = time.monotonic()

        def found(exhausted: bool, broken: str = "", trace: tuple[str, ...] = ()) -> Found:
            seconds = time.monotonic() - begun
            done = self._world.checked.executed
            return Found(
                len(self._states), self._transitions, done, seconds, exhausted, broken, trace
            )

        self._add(self._world.first(), -1)
        at = 0
        while at < len(self._states):
            if len(self._states) > self._most:
                return found(False)
            try:
                for _, is_fault, after in self._world.steps(self._states[at]):
                    self._transitions += 1
                    number = self._add(after, at)
                    if not is_fault:
                        self._from.append(at)
                        self._to.append(number)
            except Violation as violation:
                return found(False, violation.broken, (*self.trace(at), violation.label))
            at += 1
        stuck = self._stuck()
        if stuck is not None:
            return found(True, f"never ends: {self._rest(stuck)}", self.trace(stuck))
        return found(True)

    def trace(self, number: int) -> tuple[str, ...]:
        """The labels of the shortest path to a state."""
        labels: deque[str] = deque()
        while self._parents[number] >= 0:
            parent, state = self._parents[number], self._states[number]
            steps = self._world.steps(self._states[parent])
            labels.appendleft(next(label for label, _, after in steps if after == state))
            number = parent
        return tuple(labels)

    def _rest(self, number: int) -> str:
        """What is unfinished where the fleet comes to rest after a state."""
        state = self._states[number]
        after = {state}
        todo = [state]
        rests: set[str] = set()
        while todo:
            state = todo.pop()
            next_ones = [after for _, is_fault, after in self._world.steps(state) if not is_fault]
            if set(next_ones) <= {state}:
                rests.add(self._world.checked.is_finished(state))
            todo += set(next_ones) - after
            after.update(next_ones)
        return " | ".join(sorted(rests)) or "it repeats the same states"

    def _add(self, state: State, parent: int) -> int:
        number = self._numbers.get(state)
        if number is None:
            number = self._numbers[state] = len(self._states)
            self._states.append(state)
            self._parents.append(parent)
        return number

    def _stuck(self) -> int | None:
        """The first state from which the fleet cannot finish without another fault."""
        size = len(self._states)
        starts = array("l", bytes(8 * (size + 1)))
        for target in self._to:
            starts[target + 1] += 1
        for i in range(size):
            starts[i + 1] += starts[i]
        filled, sources = array("l", starts), array("l", bytes(8 * len(self._to)))
        for source, target in zip(self._from, self._to, strict=True):
            sources[filled[target]] = source
            filled[target] += 1
        fine = bytearray(size)
        todo = [
            i for i, state in enumerate(self._states) if not self._world.checked.is_finished(state)
        ]
        for i in todo:
            fine[i] = 1
        while todo:
            target = todo.pop()
            for source in sources[starts[target] : starts[target + 1]]:
                if not fine[source]:
                    fine[source] = 1
                    todo.append(source)
        missing = fine.find(0)
        return None if missing < 0 else missing
