"""What the clients of a run do: made from a seed, the same each time.

Each session goes through scenes, one after another (``script``); what they are is up to their
author (``scenes``), what is said comes from one pool (``repertoire``).
"""

import random
from collections.abc import Mapping
from typing import Final, Self

import msgspec

from verify.chaos.repertoire import Models, Utterance, repertoire
from verify.chaos.scenes import Author
from verify.chaos.script import Kind, Scene

__all__ = ["SHARES", "Course", "Models", "Orchestrator", "Plan"]

SHARES: Final[Mapping[Kind, float]] = {
    "plain": 24,
    "streamed": 16,
    "small_lead": 5,
    "large_lead": 5,
    "no_lead": 8,
    "interrupt": 8,
    "interrupt_twice": 4,
    "pause": 8,
    "stop": 5,
    "stop_request": 4,
    "duplicates": 5,
    "deadline": 6,
    "burst": 2,
    "invalid": 3,
    "unknown_voice": 2,
    "saboteur": 1,
}
"""How often each kind of scene is played, beside those that sessions play together."""

SESSIONS_OF_ONE: Final = 10
"""Sessions that one orchestrator drives."""

BY_LIBRARY: Final = 2
"""Sessions that are driven through the Python client, where there are enough."""

_MOODS: Final = (0.3, 1.0, 1.0, 3.0)


class Course(msgspec.Struct, frozen=True):
    """All that happens in one session."""

    session: str
    scenes: tuple[Scene, ...]
    by_library: bool = False


class Orchestrator(msgspec.Struct, frozen=True):
    """A client and its sessions."""

    name: str
    courses: tuple[Course, ...]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What all clients do. Made by ``make``."""

    seed: int
    main: str
    """The model of what has no utterance."""
    utterances: dict[str, Utterance]
    orchestrators: tuple[Orchestrator, ...]

    @classmethod
    def make(
        cls,
        seed: int,
        sessions: int,
        turns: int,
        models: Models,
        shares: Mapping[Kind, float] = SHARES,
    ) -> Self:
        """A plan of ``turns`` requests in ``sessions`` sessions; equal arguments, equal plans.

        Args:
            seed: Of every choice.
            sessions: How many speak side by side.
            turns: Requests in all, duplicates not counted.
            models: Who speaks.
            shares: The weight of each kind of scene. Each orchestrator takes to some more.
        """
        chance = random.Random(seed)
        utterances = repertoire(chance, models)
        others = models.by_session(sessions)
        by_library = min(BY_LIBRARY, sessions // 4)
        orchestrators: list[Orchestrator] = []
        for first in range(0, sessions, SESSIONS_OF_ONE):
            name = f"o{first // SESSIONS_OF_ONE}"
            character: dict[Kind, float] = {
                kind: share * chance.choice(_MOODS) for kind, share in shares.items()
            }
            courses: list[Course] = []
            for k in range(first, min(first + SESSIONS_OF_ONE, sessions)):
                library = k >= sessions - by_library
                model = others.get(k, models.main)
                author = Author(chance, utterances, model, character, by_library=library)
                scenes = author.scenes(turns // sessions + (k < turns % sessions))
                courses.append(Course(f"{name}:s{k}", scenes, by_library=library))
            orchestrators.append(Orchestrator(name, tuple(courses)))
        named = {utterance.name: utterance for utterance in utterances}
        return cls(
            seed=seed, main=models.main, utterances=named, orchestrators=tuple(orchestrators)
        )

    @property
    def courses(self) -> tuple[Course, ...]:
        """Of all sessions."""
        return tuple(course for one in self.orchestrators for course in one.courses)

    @property
    def sessions(self) -> tuple[str, ...]:
        """All sessions' names."""
        return tuple(course.session for course in self.courses)

    @property
    def turns(self) -> int:
        """How many requests are added, duplicates not counted."""
        return sum(len(scene.asks) for course in self.courses for scene in course.scenes)

    @property
    def seconds(self) -> float:
        """About how long it takes where nothing goes wrong."""
        return max((self._seconds(course) for course in self.courses), default=0.0)

    def _seconds(self, course: Course) -> float:
        # Much of what is said is cut short, or comes faster than it is spoken.
        said = [ask.utterance for scene in course.scenes for ask in scene.asks]
        spoken = sum(self.utterances[name].seconds for name in said if name)
        return 0.7 * spoken + 0.5 * len(course.scenes)
