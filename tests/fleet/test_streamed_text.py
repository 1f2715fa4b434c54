"""Writers that pause, writers that die: what they sent is heard, whoever speaks it in the end."""

import signal
from typing import Any

import anyio
import pytest

from tests.harness.fleet import HANG_S, Heard, Orchestrator, WorkerProcess, serving, worker_process
from voicefleet import TurnFailed, VoiceFleet

pytestmark = pytest.mark.anyio

FIRST = "One two three four five six seven eight nine ten. "
GOES_ON = "and eleven twelve thirteen fourteen. "
LAST = "Fifteen sixteen."


async def marks(fleet: Orchestrator, session: str, request: str = "r") -> list[dict[str, str]]:
    """The entries of a text stream that are no text."""
    entries = await fleet.redis.xrange(fleet.keys.text(session, request))
    found = [{k.decode(): v.decode() for k, v in fields.items()} for _, fields in entries]
    return [fields for fields in found if "text" not in fields]


async def marked(fleet: Orchestrator, session: str, mark: str, count: int = 1) -> None:
    """Wait until the worker has added so many of these entries."""
    with anyio.fail_after(HANG_S):
        while (await marks(fleet, session)).count({mark: "1"}) < count:
            await anyio.sleep(0.01)


def spoken(heard: Heard) -> list[str]:
    return [frame.text for frame in heard.frames if frame.text]


async def owner(fleet: Orchestrator, session: str, *workers: WorkerProcess) -> WorkerProcess:
    name = (await fleet.state(session))["worker"]
    return next(worker for worker in workers if worker.name == name)


class TestPause:
    @pytest.mark.matrix
    async def test_a_finished_sentence_is_spoken_and_text_goes_on(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix):
            await fleet.add("s", request="r", stream=1, lead_ms=0)
            await fleet.write("s", "r", text="This is the first sentence of a long answer. ")
            heard = await fleet.hear("s", until=10)
            assert heard.frames[0].text == "This is the first sentence of a long answer."
            await fleet.write("s", "r", text="The tool has answ")
            await fleet.write("s", "r", text="ered.", end=1)
            heard = await fleet.hear("s")
            assert heard.end.reason == "completed"
            assert spoken(heard) == [
                "This is the first sentence of a long answer.",
                "The tool has answered.",
            ]
            await fleet.settled()
            assert await fleet.redis.xlen(fleet.keys.text("s", "r")) == 0

    async def test_it_is_noted_once(self, fleet: Orchestrator, redis_url: str, prefix: str) -> None:
        async with serving(redis_url, prefix, text_settle_ms=20):
            await fleet.add("s", request="r", stream=1, lead_ms=0)
            for count, text in enumerate((FIRST, LAST), 1):
                await fleet.write("s", "r", text=text)
                await marked(fleet, "s", "settle", count)
            await anyio.sleep(0.3)
            assert await marks(fleet, "s") == [{"settle": "1"}] * 2
            await fleet.control("s", "stop")
            assert (await fleet.hear("s")).end.reason == "stopped"

    @pytest.mark.parametrize(
        ("begin", "rest"),
        [
            ("We met Dr. ", "Smith today."),
            ("The number is 3.", "14, more or less."),
            ("1. ", "Open the door."),
            ("We are so", "rry about that."),
        ],
    )
    async def test_what_may_go_on_is_not_cut(
        self, fleet: Orchestrator, redis_url: str, prefix: str, begin: str, rest: str
    ) -> None:
        async with serving(redis_url, prefix, text_settle_ms=10):
            await fleet.add("s", request="r", stream=1, lead_ms=0)
            await fleet.write("s", "r", text=begin)
            await anyio.sleep(0.3)
            assert await marks(fleet, "s") == []
            await fleet.write("s", "r", text=rest, end=1)
            assert spoken(await fleet.hear("s")) == [begin + rest]

    async def test_the_numbers_of_the_python_client_have_room_for_it(
        self, redis_url: str, prefix: str
    ) -> None:
        async with (
            serving(redis_url, prefix, text_settle_ms=20),
            VoiceFleet(redis_url, prefix=prefix) as voices,
        ):
            texts: list[str] = []
            with anyio.fail_after(2 * HANG_S):
                async with voices.session("p", model="tone-test").stream(lead_ms=0) as turn:
                    for sentence in ("One is here. ", "Two is here. ", "Three is here. "):
                        await turn.write(sentence)
                        async for frame in turn:
                            if frame.text:
                                texts.append(frame.text)
                                break
                assert (await turn).reason == "completed"
            assert texts == ["One is here.", "Two is here.", "Three is here."]


class TestDeadWriter:
    @pytest.mark.matrix
    async def test_what_it_sent_is_spoken(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix, text_timeout_s=0.3):
            await fleet.write("s", "r", text="One sentence. Half of ano")
            await fleet.add("s", request="r", stream=1, lead_ms=0)
            heard = await fleet.hear("s")
            assert (heard.end.reason, heard.end.error) == ("failed", "text_timeout")
            assert spoken(heard) == ["One sentence.", "Half of ano"]
            await fleet.settled()
            assert await fleet.redis.xlen(fleet.keys.text("s", "r")) == 0

    async def test_the_client_hears_it_too(self, redis_url: str, prefix: str) -> None:
        async with (
            serving(redis_url, prefix, text_timeout_s=1.0),
            VoiceFleet(redis_url, prefix=prefix) as voices,
        ):
            turn = voices.session("p", model="tone-test").stream(lead_ms=0)
            await turn.write("Half of a sen")
            texts: list[str] = []
            with anyio.fail_after(HANG_S), pytest.raises(TurnFailed, match="text_timeout"):
                async for frame in turn:
                    texts += [frame.text] if frame.text else []
            assert texts == ["Half of a sen"]

    async def test_text_that_the_server_forgot_is_spoken_all_the_same(
        self, fleet: Orchestrator, redis_url: str, prefix: str
    ) -> None:
        async with serving(redis_url, prefix, text_timeout_s=1.0):
            await fleet.write("s", "r", text="One sentence. Half of ano")
            await fleet.add("s", request="r", stream=1, lead_ms=0)
            await fleet.hear("s", until=1)
            await fleet.redis.delete(fleet.keys.text("s", "r"))
            heard = await fleet.hear("s")
            assert (heard.end.reason, heard.end.error) == ("failed", "text_timeout")
            assert spoken(heard) == ["One sentence.", "Half of ano"]


class TestTakeover:
    """What one owner decided when no text came holds for the next one."""

    async def calm(self, fleet: Orchestrator, *entries: dict[str, Any]) -> Heard:
        await fleet.add("calm", request="r", stream=1, seed=11, lead_ms=0)
        for fields in entries:
            await fleet.write("calm", "r", **fields)
        return await fleet.hear("calm")

    async def test_samples_stay_equal_after_a_settled_sentence(
        self, fleet: Orchestrator, redis_url: str
    ) -> None:
        flags = ("worker.text_settle_ms=50",)
        async with (
            worker_process(fleet, redis_url, "a", *flags) as a,
            worker_process(fleet, redis_url, "b", *flags) as b,
        ):
            rest = {"text": GOES_ON + LAST, "end": "1"}
            calm = await self.calm(fleet, {"text": FIRST, "settle": 1}, rest)
            await fleet.add("s", request="r", stream=1, seed=11)
            await fleet.write("s", "r", text=FIRST)
            await marked(fleet, "s", "settle")
            await fleet.write("s", "r", **rest)
            await fleet.hear("s", until=20)
            (await owner(fleet, "s", a, b)).signal(signal.SIGKILL)
            heard = await fleet.hear("s")
            assert heard.end.reason == "completed"
            assert spoken(heard) == spoken(calm) == [FIRST.strip(), GOES_ON.strip(), LAST]
            assert heard.pcm == calm.pcm

    async def test_a_writer_that_died_stays_dead(self, fleet: Orchestrator, redis_url: str) -> None:
        flags = ("worker.text_timeout_s=1", "worker.drain_timeout_s=0.05")
        async with (
            worker_process(fleet, redis_url, "a", *flags) as a,
            worker_process(fleet, redis_url, "b", *flags) as b,
        ):
            text = FIRST + "Half of ano"
            calm = await self.calm(fleet, {"text": text}, {"timeout": 1})
            await fleet.write("s", "r", text=text)
            await fleet.add("s", request="r", stream=1, seed=11)
            await marked(fleet, "s", "timeout")
            await fleet.write("s", "r", text="ther sentence. It is too late.", end=1)
            (await owner(fleet, "s", a, b)).signal(signal.SIGTERM)
            heard = await fleet.hear("s")
            assert (heard.end.reason, heard.end.error) == ("failed", "text_timeout")
            assert spoken(heard) == [FIRST.strip(), "Half of ano"]
            assert heard.pcm == calm.pcm
