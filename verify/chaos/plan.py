"""What the clients of a run do, made from a seed.

Each session plays scenes one after another (``script``). ``scenes`` draws them at random, with
texts from one pool (``utterances``).
"""

import random
from collections.abc import Mapping
from typing import Final, Self

import msgspec

from verify.chaos.scenes import Author
from verify.chaos.script import Kind, Scene
from verify.chaos.utterances import Models, Utterance, make_utterances

__all__ = ["SHARES", "Models", "Orchestrator", "Plan", "SessionScript"]

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
"""The weight of each kind of scene, without those that sessions play together."""

SESSIONS_OF_ONE: Final = 10
"""How many sessions one orchestrator drives."""

BY_CLIENT: Final = 2
"""How many sessions use the Python client, at most a quarter of them."""

_MOODS: Final = (0.3, 1.0, 1.0, 3.0)


class SessionScript(msgspec.Struct, frozen=True):
    """The scenes of one session."""

    session: str
    scenes: tuple[Scene, ...]
    by_client: bool = False


class Orchestrator(msgspec.Struct, frozen=True):
    """One client and its sessions."""

    name: str
    scripts: tuple[SessionScript, ...]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What all clients do. Made by ``make``."""

    seed: int
    main: str
    """The model of requests without an utterance."""
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
            models: Which models speak.
            shares: The weight of each kind of scene. Each orchestrator varies it.
        """
        chance = random.Random(seed)
        utterances = make_utterances(chance, models)
        others = models.by_session(sessions)
        by_client = min(BY_CLIENT, sessions // 4)
        orchestrators: list[Orchestrator] = []
        for first in range(0, sessions, SESSIONS_OF_ONE):
            name = f"o{first // SESSIONS_OF_ONE}"
            character: dict[Kind, float] = {
                kind: share * chance.choice(_MOODS) for kind, share in shares.items()
            }
            scripts: list[SessionScript] = []
            for k in range(first, min(first + SESSIONS_OF_ONE, sessions)):
                library = k >= sessions - by_client
                model = others.get(k, models.main)
                author = Author(chance, utterances, model, character, by_client=library)
                scenes = author.scenes(turns // sessions + (k < turns % sessions))
                scripts.append(SessionScript(f"{name}:s{k}", scenes, by_client=library))
            orchestrators.append(Orchestrator(name, tuple(scripts)))
        named = {utterance.name: utterance for utterance in utterances}
        return cls(
            seed=seed, main=models.main, utterances=named, orchestrators=tuple(orchestrators)
        )

    @property
    def scripts(self) -> tuple[SessionScript, ...]:
        """The scripts of all sessions."""
        return tuple(script for one in self.orchestrators for script in one.scripts)

    @property
    def sessions(self) -> tuple[str, ...]:
        """All sessions' names."""
        return tuple(script.session for script in self.scripts)

    @property
    def turns(self) -> int:
        """How many requests are added, without duplicates."""
        return sum(len(scene.asks) for script in self.scripts for scene in script.scenes)

    @property
    def seconds(self) -> float:
        """About how long it takes without faults."""
        return max((self._seconds(script) for script in self.scripts), default=0.0)

    def _seconds(self, script: SessionScript) -> float:
        # Many turns are cut short, or published faster than real time.
        said = [ask.utterance for scene in script.scenes for ask in scene.asks]
        spoken = sum(self.utterances[name].seconds for name in said if name)
        return 0.7 * spoken + 0.5 * len(script.scenes)
