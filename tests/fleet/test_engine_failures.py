"""Engines fail, hang and kill their workers: the request is answered, and nobody else notices."""

import signal
from collections.abc import AsyncGenerator, AsyncIterator

import anyio
import pytest

from tests.harness.fleet import HANG_S, Orchestrator, serving, worker_process
from voicefleet.worker.engines.protocol import (
    CannotSpeakError,
    Chunk,
    EngineError,
    Segment,
    TurnSpec,
)
from voicefleet.worker.engines.tone.engine import ToneEngine

pytestmark = pytest.mark.anyio

POISON_SEED = 666
TEXT = "One two three four. Five six seven eight. Nine ten eleven twelve."


class Poisoned:
    """The tone engine, which fails at the poison seed: each time, or the first few."""

    def __init__(self, error: Exception, times: int = 1_000, after: int = 0) -> None:
        self.tries = 0
        self._error = error
        self._times = times
        self._after = after
        self._speak = ToneEngine.speak

    def __get__(self, engine: ToneEngine, _: type) -> "Poisoned":
        self._engine = engine
        return self

    async def __call__(
        self, spec: TurnSpec, segments: AsyncIterator[Segment]
    ) -> AsyncGenerator[Chunk]:
        poisoned = spec.seed == POISON_SEED and self.tries < self._times
        self.tries += poisoned
        left = self._after
        async for chunk in self._speak(self._engine, spec, segments):
            if poisoned and left == 0:
                raise self._error
            left -= 1
            yield chunk


async def test_a_request_that_always_fails_is_answered_and_buried(
    fleet: Orchestrator, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = Poisoned(EngineError("out of notes"))
    monkeypatch.setattr(ToneEngine, "speak", poison)
    async with serving(redis_url, prefix, max_deliveries=3):
        entry = await fleet.add("s", TEXT, request="r", seed=POISON_SEED)
        await fleet.add("other", TEXT, lead_ms=0)
        heard = await fleet.hear("s")
        assert heard.end.reason == "failed"
        assert "out of notes" in (heard.end.error or "")
        assert poison.tries == 3
        assert (await fleet.hear("other")).end.reason == "completed"
        await fleet.settled()
        (letter,) = await fleet.dead()
        assert (letter["entry"], letter["session"], letter["reason"]) == (entry, "s", "failed")
        assert "Five" not in str(letter)
        await fleet.add("s", "Go on.", lead_ms=0)
        assert (await fleet.hear("s", 2)).end.reason == "completed"


@pytest.mark.parametrize("after", [0, 3])
async def test_a_passing_failure_is_not_heard(
    fleet: Orchestrator,
    redis_url: str,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    poison = Poisoned(RuntimeError("a bad moment"), times=2, after=after)
    monkeypatch.setattr(ToneEngine, "speak", poison)
    async with serving(redis_url, prefix):
        await fleet.add("s", TEXT, seed=POISON_SEED, lead_ms=0)
        heard = await fleet.hear("s")
        assert heard.end.reason == "completed"
        assert poison.tries == 2
        await fleet.add("again", TEXT, seed=POISON_SEED, lead_ms=0)
        assert heard.pcm == (await fleet.hear("again")).pcm
        await fleet.settled()
        assert not await fleet.dead()


async def test_what_a_model_cannot_speak_is_rejected_at_once(
    fleet: Orchestrator, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = Poisoned(CannotSpeakError("mode: not today"))
    monkeypatch.setattr(ToneEngine, "speak", poison)
    async with serving(redis_url, prefix):
        await fleet.add("s", TEXT, seed=POISON_SEED)
        heard = await fleet.hear("s")
        assert (heard.end.reason, heard.end.error) == ("rejected", "mode: not today")
        assert poison.tries == 1


async def test_an_engine_that_hangs_can_be_stopped(
    fleet: Orchestrator, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(
        _: ToneEngine, spec: TurnSpec, segments: AsyncIterator[Segment]
    ) -> AsyncGenerator[Chunk]:
        await anyio.sleep_forever()
        yield Chunk(None)  # type: ignore[arg-type]

    async with serving(redis_url, prefix, slots=1):
        monkeypatch.setattr(ToneEngine, "speak", hang)
        await fleet.add("s", TEXT)
        await fleet.hear("s", until=0)
        await fleet.control("s", "stop")
        assert (await fleet.hear("s")).end.reason == "stopped"
        monkeypatch.undo()
        await fleet.add("other", "Go.", lead_ms=0)
        assert (await fleet.hear("other")).end.reason == "completed"


async def test_a_request_that_kills_its_workers_is_given_up(
    fleet: Orchestrator, redis_url: str
) -> None:
    """A worker dies each time it speaks; the last one finds the request tried often enough."""
    await fleet.add("s", TEXT, request="poison", seed=POISON_SEED)
    for index in range(3):
        slow = "engine.tone.latency_ms=5000"  # it dies before its first frame
        async with worker_process(fleet, redis_url, f"w{index}", slow) as worker:
            with anyio.move_on_after(HANG_S):
                # A suspect waits a while first, and is not blamed for what happens meanwhile.
                lease = fleet.keys.lease("s")
                while await fleet.redis.hmget(lease, "owner", "attempts") != [
                    worker.name.encode(),
                    str(index + 1).encode(),
                ]:
                    await anyio.sleep(0.005)
            worker.signal(signal.SIGKILL)
            await worker.exited()
    async with worker_process(fleet, redis_url, "last"):
        async for _, entry in fleet.entries("s", "1-0"):
            assert entry.id.turn == 1
            assert getattr(entry, "reason", None) == "failed"
            assert "max_deliveries" in entry.error  # type: ignore[union-attr]
            break
        await fleet.settled()
        (letter,) = await fleet.dead()
        assert letter["request"] == "poison"
