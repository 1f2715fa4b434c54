"""The checks of ``doctor``: each yields what it found and, where that is bad, what to do."""

import time
import uuid
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import anyio

from voicefleet.cli.finding import Finding, Findings
from voicefleet.cli.permission_check import is_refused
from voicefleet.installation import install, missing
from voicefleet.producer.client import VoiceFleet
from voicefleet.producer.errors import ServerRefused, VoiceFleetError, translated
from voicefleet.schemas.request import DEFAULT_SAMPLE_RATE
from voicefleet.wire.link import Reply

OLDEST_SERVERS: Final = {"redis": (7, 0), "valkey": (8, 0)}
CLOCK_TOLERANCE_MS: Final = 500
EXAMPLE_WINDOW_S: Final = 60
PUSH_TIMEOUT_S: Final = 1.0


async def server(fleet: VoiceFleet) -> Findings:
    """Which server it is, and whether it is new enough."""
    info = await fleet.redis.info("server")
    kind = "valkey" if "valkey_version" in info else "redis"
    number = str(info.get(f"{kind}_version", "0"))
    oldest = OLDEST_SERVERS[kind]
    found = f"{kind.capitalize()} {number}, {fleet.redis.endpoint!r}"
    if tuple(int(part) for part in number.split(".")[:2]) >= oldest:
        yield Finding("ok", found)
    else:
        need = ".".join(map(str, oldest))
        yield Finding("fail", found, f"{kind.capitalize()} {need} or newer is needed")


async def memory(fleet: VoiceFleet) -> Findings:
    """Whether the server may evict frames or requests."""
    info = await fleet.redis.info("memory")
    policy, limit = str(info.get("maxmemory_policy", "?")), int(info.get("maxmemory", 0))
    if policy == "noeviction":
        yield Finding("ok", "maxmemory-policy noeviction")
    else:
        grade = "warn" if limit else "ok"
        advice = "leases and frames can be evicted: CONFIG SET maxmemory-policy noeviction"
        yield Finding(
            grade, f"maxmemory-policy {policy}, maxmemory {limit}", advice if limit else ""
        )
    if not limit:
        from voicefleet.worker.publish.retention import session_mb  # noqa: PLC0415

        size = f"{session_mb(EXAMPLE_WINDOW_S, DEFAULT_SAMPLE_RATE):.1f} MB"
        kept = f"at audio_window_s {EXAMPLE_WINDOW_S} and {DEFAULT_SAMPLE_RATE} Hz"
        yield Finding("ok", f"no maxmemory: reckon {size} a session, {kept}")


async def persistence(fleet: VoiceFleet) -> Findings:
    """What a restart of the server would lose."""
    info = await fleet.redis.info("persistence")
    if int(info.get("aof_enabled", 0)):
        yield Finding("ok", "append-only file on: turns go on after a restart")
    else:
        advice = "CONFIG SET appendonly yes, or have a replica"
        yield Finding("warn", "no append-only file: a restart loses requests and audio", advice)


async def clock(fleet: VoiceFleet) -> Findings:
    """How far this machine's clock is from the server's."""
    asked = time.time()
    seconds, micros = await fleet.redis.call("TIME")
    answered = time.time()
    offset = offset_ms((asked + answered) / 2, seconds + micros / 1e6)
    found = f"this clock is {offset:+d} ms from the server's"
    if abs(offset) <= CLOCK_TOLERANCE_MS:
        yield Finding("ok", found)
    else:
        advice = "run NTP; deadline_ms is in server time (the client's start_within asks it)"
        yield Finding("warn", found, advice)


def offset_ms(here_s: float, there_s: float) -> int:
    """How many milliseconds the first of two clocks is ahead. An int has no ``-0``."""
    return round((here_s - there_s) * 1000)


async def tracking(fleet: VoiceFleet) -> Findings:
    """Whether the server pushes a key's changes to a connection that tracks it, as workers need."""
    key = fleet.keys.lease(f"doctor-{uuid.uuid4().hex}")
    pushed = anyio.Event()

    def on_push(message: list[Reply]) -> None:
        if message and message[0] == b"invalidate":
            pushed.set()

    topology = fleet.redis.topology
    found = "client-side caching (RESP3, CLIENT TRACKING)"
    fallback = "workers fall back to asking every 20 ms; allow CLIENT TRACKING: +client|tracking"
    try:
        with translated(fleet.redis.endpoint):
            link = await topology.open_link(topology.owner(key), on_push)
    except VoiceFleetError as error:
        yield Finding("fail", f"a RESP3 connection: {error}", "HELLO 3 must be allowed")
        return
    try:
        with translated(fleet.redis.endpoint):
            if await is_refused(link, ("HSET", key, "doctor", 0)):
                yield Finding("ok", f"{found}: not looked at, this is not a worker's user")
                return
            await link.call("PEXPIRE", key, 5000)
            await link.call("CLIENT", "TRACKING", "ON")
            await link.call("HGETALL", key)
            began = time.perf_counter()
            other = await topology.open_link(topology.owner(key))
            try:
                await other.call("HSET", key, "doctor", 1)
            finally:
                other.close()
            with anyio.move_on_after(PUSH_TIMEOUT_S):
                await pushed.wait()
        if pushed.is_set():
            took = (time.perf_counter() - began) * 1000
            yield Finding("ok", f"{found}: a change arrives after {took:.1f} ms")
        else:
            yield Finding("warn", f"{found}: no push within {PUSH_TIMEOUT_S:.0f} s", fallback)
    except VoiceFleetError as error:
        yield Finding("warn", f"{found}: {error}", fallback)
    finally:
        link.close()


async def engines() -> Findings:
    """Whether a worker on this machine could speak."""
    if missing("worker"):
        yield Finding("ok", f"a client's installation; for a worker: {install('worker')}")
        return
    from voicefleet.worker.engines.registry import BROKEN, FAMILIES  # noqa: PLC0415

    for name, family in FAMILIES.items():
        found = {package: _version(package) for package in family.requires}
        lacking = [package for package, number in found.items() if not number]
        if lacking:
            remedy = install(family.extra, package=family.package)
            advice = f"only workers that speak {name} need it: {remedy}"
            yield Finding("warn", f"engine {name}: without {', '.join(lacking)}", advice)
        else:
            versions = [f"{package} {number}" for package, number in found.items()]
            yield Finding("ok", f"engine {name}: {', '.join(versions) or 'needs nothing else'}")
    for problem in BROKEN.values():
        yield Finding("warn", problem, "update or uninstall that package")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


async def voicepacks() -> Findings:
    """Whether the voicepacks on this machine are complete."""
    if missing("worker"):
        return
    from voicefleet.worker.engines import registry  # noqa: PLC0415
    from voicefleet.worker.voicepacks import voicepack as packs  # noqa: PLC0415

    try:
        found = packs.discover(packs.default_directory())
    except packs.VoicepackError as error:
        yield Finding("warn", f"voicepacks: {error}", "only workers need them")
        return
    for model, pack in found.items():
        problems = registry.check(pack)
        if problems:
            yield Finding(
                "warn", f"voicepack {problems[0]}", "`voicefleet voicepacks check` says more"
            )
        else:
            yield Finding("ok", f"voicepack {model} in {pack.directory}")


async def workers(fleet: VoiceFleet) -> Findings:
    """Which workers are alive, and whether there are dead letters."""
    alive = await fleet.workers()
    for worker in alive:
        record = worker.record
        found = f"worker {worker.name} {record.state}: {', '.join(record.models)}"
        yield Finding("ok", f"{found}, {record.slots_free} of {record.slots_total} slots free")
    if not any(worker.record.state == "ready" for worker in alive):
        advice = "voicefleet worker --config piper"
        yield Finding("fail", "no worker is ready: requests wait", advice)
    try:
        dead = int(await fleet.redis.call("XLEN", fleet.keys.dead))
    except ServerRefused:
        yield Finding("ok", "dead letters: not looked at, this user may not read them")
        return
    if dead:
        advice = "`voicefleet dead` says which, and why"
        yield Finding("warn", f"{dead} requests could not be spoken", advice)
