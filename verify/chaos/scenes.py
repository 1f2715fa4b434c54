"""Draws the scenes of one session at random, up to a number of requests."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from verify.chaos.script import (
    Add,
    AddAgain,
    AddTogether,
    Ask,
    Kind,
    Scene,
    SetControl,
    Sleep,
    Step,
    WaitForEnds,
    WaitForFrames,
)
from verify.chaos.utterances import Utterance

UNKNOWN_VOICE: Final = "nobody"
BURST: Final = 8
TOGETHER_EACH: Final = 12
"""After so many scenes, the sessions of an orchestrator add requests in one pipeline."""

BY_CLIENT: Final[tuple[Kind, ...]] = (
    "plain",
    "streamed",
    "no_lead",
    "interrupt",
    "pause",
    "stop",
)
"""The kinds of scenes that the Python client plays."""


class Author:
    """Draws the scenes of one session, for one model."""

    def __init__(
        self,
        chance: random.Random,
        utterances: Sequence[Utterance],
        model: str,
        shares: Mapping[Kind, float],
        *,
        by_client: bool,
    ) -> None:
        self._chance = chance
        mine = [utterance for utterance in utterances if utterance.model == model]
        self._plain = [utterance for utterance in mine if not utterance.streamed]
        self._streamed = [utterance for utterance in mine if utterance.streamed]
        self._sabotage = [utterance for utterance in utterances if utterance.sabotage]
        self._together = not by_client
        weights: dict[Kind, float] = {
            kind: shares.get(kind, 0.0) for kind in (BY_CLIENT if by_client else shares)
        }
        if not self._sabotage:
            weights.pop("saboteur", None)
        self._weights: dict[Kind, float] = {
            kind: weight for kind, weight in weights.items() if weight > 0
        }
        self._turns = 0

    def scenes(self, turns: int) -> tuple[Scene, ...]:
        """Scenes that add ``turns`` requests in all."""
        scenes: list[Scene] = []
        while self._turns < turns:
            before = self._turns
            kinds: list[Kind] = [*self._weights]
            (kind,) = self._chance.choices(kinds, [*self._weights.values()])
            if self._together and len(scenes) % TOGETHER_EACH == TOGETHER_EACH - 1:
                kind = "together"
            steps = _SCENES[kind](self)
            if self._turns > turns:  # more than is left
                self._turns = before
                kind, steps = "plain", self.plain()
            scenes.append(Scene(kind, tuple(steps)))
        return tuple(scenes)

    def _ask(self, utterance: Utterance | None = None, **options: Any) -> Ask:
        self._turns += 1
        chosen = utterance or self._chance.choice(self._plain)
        return Ask(request=f"t{self._turns}", utterance=chosen.name, **options)

    def _long(self, **options: Any) -> Ask:
        """One that takes long enough for something to happen meanwhile."""
        longest = sorted(self._plain, key=lambda utterance: utterance.seconds)[-6:]
        return self._ask(self._chance.choice(longest), **options)

    def _some(self, least: float, most: float) -> float:
        return round(self._chance.uniform(least, most), 3)

    def _well_into(self, ask: Ask) -> tuple[Step, ...]:
        """Wait until some frames of it were read."""
        return (WaitForFrames(ask.request, self._chance.randint(1, 50)), Sleep(self._some(0, 0.3)))

    # The kinds of scenes, in the order of ``Kind``.

    def plain(self) -> Sequence[Step]:
        """One turn."""
        return [Add((self._ask(),))]

    def streamed(self) -> Sequence[Step]:
        """A turn whose text is written while it is spoken."""
        return [Add((self._ask(self._chance.choice(self._streamed)),))]

    def small_lead(self) -> Sequence[Step]:
        """Frames a little ahead of real time."""
        return [Add((self._ask(lead_ms=self._chance.choice((20, 60, 100))),))]

    def large_lead(self) -> Sequence[Step]:
        """Frames far ahead of real time."""
        return [Add((self._ask(lead_ms=self._chance.choice((1000, 3000, 10_000))),))]

    def no_lead(self) -> Sequence[Step]:
        """As fast as frames are made."""
        return [Add((self._ask(lead_ms=0),))]

    def interrupt(self) -> Sequence[Step]:
        """Barge in; now and then on turns that still wait."""
        first = self._long()
        waiting = [self._ask() for _ in range(self._chance.choice((0, 0, 1, 2)))]
        return [
            Add((first, *waiting)),
            *self._well_into(first),
            Add((self._ask(interrupt=True),)),
        ]

    def interrupt_twice(self) -> Sequence[Step]:
        """Barge in twice."""
        first, second = self._long(), self._long(interrupt=True)
        return [
            Add((first,)),
            *self._well_into(first),
            Add((second,)),
            Sleep(self._some(0, 0.5)),
            Add((self._ask(interrupt=True),)),
        ]

    def pause(self) -> Sequence[Step]:
        """Pause and go on, once or twice."""
        ask = self._long()
        steps: list[Step] = [Add((ask,))]
        for _ in range(self._chance.choice((1, 1, 2))):
            steps += [*self._well_into(ask), SetControl("pause"), Sleep(self._some(0.2, 2.0))]
            steps.append(SetControl(self._chance.choice(("resume", "resume", "RESUME", ""))))
        return steps

    def stop(self) -> Sequence[Step]:
        """Stop the session, with what waits in it and what is added meanwhile."""
        first = self._long()
        waiting = [self._ask() for _ in range(self._chance.choice((0, 0, 1)))]
        later = [self._ask() for _ in range(self._chance.choice((0, 0, 1)))]
        asked = [first, *waiting, *later]
        return [
            Add((first, *waiting)),
            *self._well_into(first),
            SetControl(self._chance.choice(("stop", "stop", "Stop"))),
            *([Add(tuple(later))] if later else []),
            WaitForEnds(tuple(ask.request for ask in asked)),
            SetControl(self._chance.choice(("resume", ""))),
        ]

    def stop_request(self) -> Sequence[Step]:
        """Stop some of the turns that wait; the others are spoken."""
        asks = (self._long(), self._ask(), self._ask())
        named = self._chance.choice(asks[:2])
        steps: list[Step] = [Add(asks), *self._well_into(asks[0])]
        steps += [SetControl(f"stop:{named.request}"), WaitForEnds((named.request,))]
        if self._chance.random() < 0.5:  # otherwise the value stays, for a turn that has ended
            steps.append(SetControl("resume"))
        return steps

    def duplicates(self) -> Sequence[Step]:
        """The same request again: at once, meanwhile, and after its end."""
        ask = self._ask()
        again = AddAgain(ask.request)
        steps: list[Step] = [Add((ask,)), again]
        steps += [*self._well_into(ask), again, WaitForEnds((ask.request,)), again]
        return steps

    def deadline(self) -> Sequence[Step]:
        """A deadline that has passed, one that may pass behind another turn, or an easy one."""
        match self._chance.choice(("past", "soon", "easy")):
            case "past":
                return [Add((self._ask(deadline_in_ms=-self._chance.randint(1, 5000)),))]
            case "soon":
                soon = self._chance.randint(300, 3000)
                return [Add((self._long(), self._ask(deadline_in_ms=soon)))]
            case _:
                return [Add((self._ask(deadline_in_ms=60_000),))]

    def burst(self) -> Sequence[Step]:
        """Many turns in one pipeline."""
        briefest = sorted(self._plain, key=lambda utterance: utterance.seconds)[:6]
        return [Add(tuple(self._ask(self._chance.choice(briefest)) for _ in range(BURST)))]

    def together(self) -> Sequence[Step]:
        """One pipeline for several sessions."""
        return [AddTogether(self._ask())]

    def invalid(self) -> Sequence[Step]:
        """What the protocol does not allow."""
        wrong: dict[str, Any] = self._chance.choice(
            (
                {"odd": {"speed": "9"}},
                {"odd": {"speed": "fast"}},
                {"odd": {"sample_rate": "44100"}},
                {"odd": {"lead_ms": "-1"}},
                {},
            )
        )
        ask = self._ask(invalid=True, **wrong)
        if not wrong:
            ask = Ask(request=ask.request, utterance="", invalid=True)
        return [Add((ask,))]

    def unknown_voice(self) -> Sequence[Step]:
        """A voice that no model has."""
        return [Add((self._ask(odd={"voice": UNKNOWN_VOICE}, invalid=True),))]

    def saboteur(self) -> Sequence[Step]:
        """A request that makes its engine fail."""
        return [Add((self._ask(self._chance.choice(self._sabotage)),))]


_SCENES: Final[Mapping[Kind, Callable[[Author], Sequence[Step]]]] = {
    "plain": Author.plain,
    "streamed": Author.streamed,
    "small_lead": Author.small_lead,
    "large_lead": Author.large_lead,
    "no_lead": Author.no_lead,
    "interrupt": Author.interrupt,
    "interrupt_twice": Author.interrupt_twice,
    "pause": Author.pause,
    "stop": Author.stop,
    "stop_request": Author.stop_request,
    "duplicates": Author.duplicates,
    "deadline": Author.deadline,
    "burst": Author.burst,
    "together": Author.together,
    "invalid": Author.invalid,
    "unknown_voice": Author.unknown_voice,
    "saboteur": Author.saboteur,
}
