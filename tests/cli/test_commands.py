"""Commands of the command line that need no worker, run in this process."""

import json
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from tests.harness.cli_process import rest_of, running
from tests.producer.fake_worker import MODEL, FakeWorker
from voicefleet.cli import main
from voicefleet.cli.checks import offset_ms
from voicefleet.cli.table import age
from voicefleet.embedded_server import EmbeddedServer

pytestmark = pytest.mark.anyio

Run = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
async def worker(redis: Redis, prefix: str) -> FakeWorker:
    return FakeWorker(redis, prefix)


@pytest.fixture
def bare(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command: status, stdout, stderr."""

    async def run(*args: str) -> tuple[int, str, str]:
        status = await anyio.to_thread.run_sync(main, args)
        output = capfd.readouterr()
        return status, output.out, output.err

    return run


@pytest.fixture
def run(bare: Run, redis_url: str, prefix: str) -> Run:
    """The same with the test's own server and prefix."""

    async def run(*args: str) -> tuple[int, str, str]:
        return await bare(*args, "--redis-url", redis_url, "--prefix", prefix)

    return run


async def test_control(run: Run, worker: FakeWorker, redis: Redis) -> None:
    key = worker.keys.control("s1")
    for args, value in (
        (("pause", "s1"), b"pause"),
        (("resume", "s1"), b"resume"),
        (("stop", "s1"), b"stop"),
        (("stop", "s1", "--request", "r7"), b"stop:r7"),
    ):
        status, out, _ = await run(*args)
        assert status == 0 and out.startswith("s1: ")
        assert await redis.get(key) == value
        assert await redis.ttl(key) > 3500


async def test_control_of_a_session_that_nobody_knows_says_so(
    run: Run, worker: FakeWorker, redis: Redis
) -> None:
    for command in ("pause", "resume", "stop"):
        status, _, output = await run(command, "s1")
        assert status == 0 and "no worker knows this session now" in output
    await redis.hset(worker.keys.session("s1"), mapping={"state": "idle"})
    await redis.expire(worker.keys.session("s1"), 60)
    for command in ("pause", "resume", "stop"):
        assert (await run(command, "s1"))[2] == ""


async def test_control_needs_no_permission_to_look(bare: Run) -> None:
    rights = "user app on >pw ~tts:control:* &* +@connection +info +set +expire"
    async with EmbeddedServer.start(config=[rights]) as server:
        url = f"redis://app:pw@127.0.0.1:{server.port}"
        assert await bare("pause", "s1", "--redis-url", url) == (0, "s1: pause\n", "")


async def test_dead_letters(run: Run, worker: FakeWorker, redis: Redis) -> None:
    assert (await run("dead", "--json"))[:2] == (0, "[]\n")
    key = worker.keys.dead
    pipeline = redis.pipeline(transaction=False)
    for n in range(1200):
        fields = {"model": MODEL, "entry": f"{n}-0", "request": f"r{n}", "reason": "rejected"}
        session = {"session": "first" if n < 2 else "later"} if n else {}
        pipeline.xadd(key, {**fields, **session, "error": "text: is missing", "worker": "w1"})
    await pipeline.execute()
    await redis.expire(key, 60)

    _, out, _ = await run("dead", "--count", "2", "--json")
    assert [letter["request"] for letter in json.loads(out)] == ["r1199", "r1198"]
    _, out, _ = await run("dead", "--session", "first", "--json")
    (letter,) = json.loads(out)
    assert letter["request"] == "r1" and letter["error"] == "text: is missing" and letter["id"]
    _, out, _ = await run("dead", "--count", "5000", "--json")
    assert [letter["request"] for letter in json.loads(out)] == [
        f"r{n}" for n in range(1199, -1, -1)
    ]
    _, out, _ = await run("dead", "--count", "1")
    assert "r1199" in out and "text: is missing" in out
    assert (await run("dead", "--count", "0"))[0] == 2


async def test_records(run: Run, worker: FakeWorker, redis: Redis) -> None:
    await worker.register()
    key = worker.keys.session("s1")
    await redis.hset(key, mapping={"state": "speaking", "turn": 3, "first_audio_ms": "7.4"})
    await redis.expire(key, 60)

    status, out, _ = await run("workers", "--json")
    assert status == 0
    assert [(w["name"], w["slots_free"]) for w in json.loads(out)] == [("w1", 15)]
    assert "w1" in (await run("workers"))[1]

    _, out, _ = await run("models", "--json")
    assert json.loads(out)[MODEL]["voices"] == ["a", "b"]
    assert "tone-test (synthetic)" in (await run("models"))[1]

    _, out, _ = await run("sessions", "--json")
    assert [record["session"] for record in json.loads(out)] == ["s1"]
    assert "7 ms" in (await run("sessions"))[1]


async def test_tail(run: Run, worker: FakeWorker) -> None:
    await worker.start("s1", 1, "r1")
    await worker.frames("s1", 1, 1, 3)
    await worker.end("s1", 1, "r1", 3)
    status, out, _ = await run("tail", "s1", "--all", "--turns", "1")
    assert status == 0
    assert [line.split()[:2] for line in out.splitlines()] == [["1-0", "start"], ["1-4", "end"]]
    assert "completed, 3 frames, 0.06 s" in out
    _, out, _ = await run("tail", "s1", "--after", "1-3", "--turns", "1")
    assert out.split()[:2] == ["1-4", "end"]


async def test_errors_are_one_line(run: Run, bare: Run, worker: FakeWorker, tmp_path: Path) -> None:
    out = str(tmp_path / "x.wav")
    for status, error in (
        (await run("say", "hello", "--out", out), "no model is served now"),
        (await run("say", "x", "--model", "m", "--out", out), "no worker serves 'm'"),
        (await run("say", "x", "--model", "m", "--speed", "9", "--out", out), "speed"),
        (await bare("workers", "--redis-url", "redis://127.0.0.1:1"), "127.0.0.1:1"),
        (await bare("workers", "--redis-url", "http://x"), "the scheme is not one of"),
        (await bare("up", "--config", "/no/such/file"), "no configuration /no/such/file"),
        (await bare("worker", "--config", "/no/such/file"), "no configuration /no/such/file"),
        (await bare("worker", "--config", "nope"), "voicefleet has cosyvoice2, piper, tone"),
    ):
        code, _, stderr = status
        assert code == 1
        assert stderr.startswith("voicefleet: ") and stderr.count("\n") == 1, stderr
        assert error in stderr
    code, _, stderr = await bare("workers", "--redis-url", "http://x", "--debug")
    assert code == 1 and "Traceback" in stderr


async def test_a_worker_without_a_configuration_lists_those_that_are_shipped(bare: Run) -> None:
    status, _, output = await bare("worker")
    assert status == 1
    for name in ("cosyvoice2", "piper", "tone"):
        assert f"\n  {name} " in output
    assert "A worker with a real voice on the CPU" in output


async def test_a_shipped_configuration_is_found_by_its_name(
    bare: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tone", "tone.yaml"):
        status, out, _ = await bare(
            *("worker", "--config", name, "--one-shot", "One two.", "--out", "x.wav")
        )
        assert status == 0 and "tone-test on cpu" in out
    Path("tone").write_text("worker: {nonsense: 1}")
    assert "tone:1: worker.nonsense" in (await bare("worker", "--config", "tone"))[2]


@pytest.mark.parametrize("text", ["", "worker:\n", "worker: {models: []}\n"])
async def test_a_worker_without_models_does_not_start(bare: Run, tmp_path: Path, text: str) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text(text)
    status, _, output = await bare("worker", "--config", str(path))
    assert status == 1
    assert str(path) in output and "worker.models: names no model" in output
    assert "--set worker.models=" in output and "VOICEFLEET_WORKER_MODELS" in output


async def test_capacity_measures_an_engine_that_has_not_measured_itself(bare: Run) -> None:
    slow = ("--set", "engine.tone.slots=2", "--set", "engine.tone.rtf=0.2")
    status, out, _ = await bare("capacity", "--model", "tone-test", *slow)
    assert status == 0
    assert "tone-test on cpu: 2 turns at once, as engine.tone.slots says" in out
    (speed,) = re.findall(r"speed +([0-9.]+) s of audio a second, with 2 turns at once", out)
    assert 0 < float(speed) <= 10  # two turns, neither faster than 1 / 0.2
    assert "of 2 that start together" in out and "too slow" not in out


async def test_capacity_says_what_a_slow_device_keeps_up_with(bare: Run) -> None:
    slow = ("--set", "engine.tone.slots=5", "--set", "engine.tone.rtf=1.3")
    _, out, _ = await bare("capacity", "--model", "tone-test", *slow)
    (fewer,) = re.findall(r"too slow for 5 that speak .*: lower engine\.tone\.slots to (\d)", out)
    assert int(fewer) <= 3


async def test_wrong_usage(bare: Run) -> None:
    assert (await bare("nonsense"))[0] == 2
    assert (await bare("pause"))[0] == 2
    assert (await bare("--help"))[0] == 0


async def test_the_environment_says_where_redis_is(
    bare: Run, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOICEFLEET_REDIS_URL", redis_url)
    monkeypatch.setenv("VOICEFLEET_REDIS_PREFIX", prefix)
    assert (await bare("workers", "--json"))[:2] == (0, "[]\n")
    monkeypatch.setenv("VOICEFLEET_REDIS_TIMEOUT_S", "soon")
    assert "VOICEFLEET_REDIS_TIMEOUT_S" in (await bare("workers"))[2]


async def test_doctor_finds_a_good_server(run: Run, worker: FakeWorker) -> None:
    await worker.register()
    status, out, _ = await run("doctor")
    assert status == 0 and "fail" not in out
    assert "ok   worker w1 ready" in out
    assert "a change arrives after" in out
    _, out, _ = await run("doctor", "--json")
    assert {finding["grade"] for finding in json.loads(out)} <= {"ok", "warn"}


async def test_doctor_does_without_the_worker_extra(
    redis_url: str, prefix: str, worker: FakeWorker
) -> None:
    await worker.register()
    where = ("--redis-url", redis_url, "--prefix", prefix)
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["numpy", "pyloudnorm", "soxr", "structlog", "yaml"]))
from voicefleet.cli import main
sys.exit(main(["doctor", *{where}]))
"""
    async with running(command=[sys.executable, "-c", code]) as process:
        output = await rest_of(process.stdout)
        assert await process.wait() == 0, output
    assert "a client's installation; for a worker: pip install" in output
    assert "worker w1 ready" in output


async def test_doctor_on_a_cluster(
    bare: Run, cluster: RedisCluster, cluster_url: str, prefix: str
) -> None:
    await FakeWorker(cluster, prefix).register()
    status, out, _ = await bare("doctor", "--redis-url", cluster_url, "--prefix", prefix)
    assert status == 0, out
    assert "may do all" in out


async def test_doctor_fails_where_no_worker_serves(run: Run, worker: FakeWorker) -> None:
    for register in (False, True):
        if register:
            await worker.register(state="draining")
        status, out, _ = await run("doctor")
        assert status == 1
        (found, advice) = out[out.index("fail ") :].splitlines()[:2]
        assert found == "fail no worker is ready: requests wait"
        assert advice.startswith("     -> voicefleet worker --config ")


async def test_doctor_finds_missing_permissions(bare: Run) -> None:
    rights = "user app on >pw ~tts:* &* +@all -@dangerous -xtrim -xgroup"
    async with EmbeddedServer.start(config=[rights]) as server:
        url = f"redis://app:pw@127.0.0.1:{server.port}"
        status, out, _ = await bare("doctor", "--redis-url", url)
        assert status == 1
        assert "user app may not: XTRIM, XGROUP CREATE" in out
        assert 'ACL SETUSER app "(~tts:audio:{*} +xtrim)" "(~tts:requests:* +xgroup|create' in out


async def test_doctor_without_a_server(bare: Run) -> None:
    status, out, _ = await bare("doctor", "--redis-url", "redis://127.0.0.1:1")
    assert status == 1 and out.startswith("fail ")


async def test_voicepacks(bare: Run, tmp_path: Path) -> None:
    status, out, _ = await bare("voicepacks", "list")
    assert status == 0 and "piper-en-joe" in out
    broken = tmp_path / "tone" / "x"
    broken.mkdir(parents=True)
    (broken / "metadata.yaml").write_text("family: [")
    status, out, _ = await bare("voicepacks", "check", "--dir", str(tmp_path))
    assert status == 1 and out.startswith("fail ")
    status, out, _ = await bare("voicepacks", "check", "--dir", str(tmp_path), "--json")
    (checked,) = json.loads(out)
    assert status == 1 and checked["grade"] == "fail" and checked["findings"]
    status, out, _ = await bare("voicepacks", "list", "--json")
    listed = {pack["model"]: pack for pack in json.loads(out)}
    assert status == 0 and listed["piper-en-joe"]["native_rate"] == 22050


def test_a_clock_that_is_hardly_behind_is_not_minus_zero_off() -> None:
    assert f"{offset_ms(1000.0, 1000.0002):+d}" == "+0"
    assert offset_ms(1000.5, 1000.0) == 500


def test_age() -> None:
    assert age(0, 5) is None
    assert age(1, 1501) == "1.5 s"
    assert age(1, 60_001) == "1 min"
    assert age(1, 7_200_001) == "2 h"
