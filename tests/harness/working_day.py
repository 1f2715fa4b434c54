"""Uses every function of a fleet, to test the permissions of its users."""

import signal
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from tests.harness.fleet import HANG_S, Orchestrator, WorkerProcess, serving, worker_process
from voicefleet import VoiceFleet
from voicefleet.schemas import Level, Start

TEXT = "One two three four five six seven. Eight nine ten eleven twelve. Thirteen fourteen."
MODEL = "tone-test"


async def turns_and_controls(fleet: Orchestrator, worker_url: str, admin: Any) -> None:
    """Turns of every kind, with every ending."""
    prefix = fleet.keys.prefix
    async with serving(worker_url, prefix, slots=2, max_waiting_turns=3):
        await fleet.add("plain", TEXT, lead_ms=0)
        assert (await fleet.hear("plain")).end.reason == "completed"
        await fleet.add("typed", request="r1", stream=1, lead_ms=0)
        await fleet.write("typed", "r1", text="The first words. ")
        await fleet.write("typed", "r1", text="And the last.", flush=1)
        await fleet.write("typed", "r1", end=1)
        assert (await fleet.hear("typed")).end.reason == "completed"
        await fleet.add("thinking", request="r1", stream=1, lead_ms=0)
        await fleet.write("thinking", "r1", text="A sentence, and silence. ")
        await fleet.hear("thinking", until=1)
        await fleet.write("thinking", "r1", end=1)
        assert (await fleet.hear("thinking")).end.reason == "completed"
        await fleet.add("typed", "Twice.", request="r1")  # known: ignored
        await fleet.add("typed", TEXT, request="r2")
        await fleet.add("typed", "Stop both.", request="r3")
        await fleet.hear("typed", 2, until=5)
        await fleet.control("typed", "stop:r3")
        assert (await fleet.hear("typed", 3)).end.reason == "stopped"
        await fleet.add("torn", TEXT)
        await fleet.hear("torn", until=3)
        await fleet.control("torn", "pause")
        await _is(fleet, "torn", "paused")
        await fleet.control("torn", "resume")
        await fleet.add("torn", "Enough.", interrupt=1, lead_ms=0)
        assert (await fleet.hear("torn")).end.reason == "interrupted"
        assert (await fleet.hear("torn", 2)).end.reason == "completed"
        await fleet.add("late", "Too late.", deadline_ms=1)
        assert (await fleet.hear("late")).end.reason == "expired"
        await fleet.add("bad", "Too fast.", speed=9)
        assert (await fleet.hear("bad")).end.reason == "rejected"
        # Debris under the fleet's names is cleared away.
        await admin.set(fleet.keys.lease("debris"), "no lease")
        await admin.set(fleet.keys.spoken("debris"), "no names")
        await admin.set(fleet.keys.session("debris"), "no record")
        await fleet.add("debris", "Speak up.", lead_ms=0)
        assert (await fleet.hear("debris")).end.reason == "completed"
        await fleet.settled()
        await _rush(fleet, admin)


async def _rush(fleet: Orchestrator, admin: Any) -> None:
    """More requests than two slots can serve: some wait, expire or are rejected."""
    for key in (fleet.keys.backlog(MODEL), fleet.keys.books(MODEL), fleet.keys.ranks(MODEL)):
        await admin.set(key, "nothing of ours")
    await fleet.add("long:1", TEXT)
    await fleet.hear("long:1", until=1)
    for _ in range(6):
        await fleet.add("long:1", "Too many.", lead_ms=0)
    await fleet.add("long:2", TEXT)
    await fleet.hear("long:2", until=1)
    for number in range(3):
        await fleet.add(f"many:{number}", "In turns.", lead_ms=0)
    seconds, _ = await fleet.redis.time()
    await fleet.add("hurried:1", "No slot in time.", deadline_ms=seconds * 1000 + 1)
    assert (await fleet.hear("hurried:1")).end.reason == "expired"
    for session in ("long:1", "long:2"):
        await fleet.control(session, "stop")
    assert [(await fleet.hear(f"many:{n}")).end.reason for n in range(3)] == ["completed"] * 3
    ends = [turn.end.reason for turn in await fleet.turns("long:1", 7)]
    assert set(ends) == {"stopped", "rejected"}, ends
    await fleet.settled()


async def deaths_and_handovers(fleet: Orchestrator, worker_url: str) -> None:
    """Kill a worker in mid-turn, then drain the one that took the turn over."""
    flags = ("worker.drain_timeout_s=0.05",)
    async with (
        worker_process(fleet, worker_url, "a", *flags) as a,
        worker_process(fleet, worker_url, "b", *flags) as b,
    ):
        await fleet.add("reference", TEXT, seed=11, lead_ms=0)
        reference = await fleet.hear("reference")
        await fleet.add("s", TEXT, seed=11)
        await fleet.hear("s", until=20)
        (await _owner(fleet, "s", a, b)).signal(signal.SIGKILL)
        await fleet.hear("s", until=60)
        async with worker_process(fleet, worker_url, "c", *flags) as c:
            survivor = await _owner(fleet, "s", a, b)
            survivor.signal(signal.SIGTERM)
            assert (await fleet.hear("s")).pcm == reference.pcm
            assert await survivor.exited() == 0
            c.signal(signal.SIGTERM)
            assert await c.exited() == 0


async def a_failover(
    before: Orchestrator, after: Orchestrator, fail: Callable[[], Awaitable[None]]
) -> None:
    """Let the primary fail in mid-turn; ``after`` is connected to its replica."""
    await before.add("reference", TEXT, seed=11, lead_ms=0)
    reference = await before.hear("reference")
    await before.add("s", TEXT, seed=11)
    await before.hear("s", until=40)
    await fail()
    assert (await after.hear("s")).pcm == reference.pcm


async def the_python_client(url: str, worker_url: str, prefix: str) -> None:
    """Use every function of the Python client."""
    async with serving(worker_url, prefix), VoiceFleet(url, prefix=prefix) as fleet:
        turn = await fleet.speak(TEXT, model=MODEL, lead_ms=0, start_within=20)
        assert turn.reason == "completed"
        session = fleet.session("p", model=MODEL)
        async with session.listen() as listener:
            async with session.stream(lead_ms=0) as streamed:
                await streamed.write("Some words, ")
                await streamed.flush()
                await streamed.write("and some more.")
                await streamed.end_text()
                assert (await streamed).reason == "completed"
            assert isinstance(await anext(listener), Start)
        second = await session.speak(TEXT).send()
        await session.pause()
        assert await session.control_value() is Level.PAUSE
        await session.resume()
        await second.stop()
        assert (await second).reason == "stopped"
        await session.stop()
        state = await session.state()
        assert state is not None and state.request == second.request
        assert [worker.name for worker in await fleet.workers()] == ["w1"]
        assert list(await fleet.models()) == [MODEL]
        assert (await fleet.capacity(MODEL)).workers == 1
        assert "p" in {name async for name, _ in fleet.sessions()}


async def _is(fleet: Orchestrator, session: str, state: str) -> None:
    with anyio.fail_after(HANG_S):
        while (await fleet.state(session)).get("state") != state:
            await anyio.sleep(0.01)


async def _owner(fleet: Orchestrator, session: str, *workers: WorkerProcess) -> WorkerProcess:
    name = (await fleet.state(session))["worker"]
    return next(worker for worker in workers if worker.name == name)
