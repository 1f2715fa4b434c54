"""``workers``, ``models``, ``sessions``: the records that workers keep in Redis."""

from contextlib import aclosing

import msgspec

from voicefleet.cli.table import Json, age, milliseconds, print_json, print_table
from voicefleet.cli.target import DEFAULT, Target
from voicefleet.producer.client import VoiceFleet


async def now_ms(fleet: VoiceFleet) -> int:
    """The server's time, in unix ms."""
    seconds, micros = await fleet.redis.call("TIME")
    return seconds * 1000 + micros // 1000


async def workers(*, as_json: Json = False, target: Target = DEFAULT) -> None:
    """List the workers that are alive."""
    async with target.fleet() as fleet:
        found = await fleet.workers()
        now = await now_ms(fleet)
    if as_json:
        print_json([{"name": w.name, **msgspec.structs.asdict(w.record)} for w in found])
        return
    for worker in found:
        if worker.record.faults:
            print(f"{worker.name}: {worker.record.faults}")
    headings = ("worker", "state", "device", "models", "free", "slots", "sessions", "p50", "p95")
    print_table(
        (*headings, "rtf", "up", "beat"),
        (
            (
                *(w.name, r.state, r.device, ", ".join(r.models)),
                *(r.slots_free, r.slots_total, r.sessions),
                *(milliseconds(r.first_audio_p50_ms), milliseconds(r.first_audio_p95_ms), r.rtf),
                *(age(r.started_ms, now), age(r.beat_ms, now)),
            )
            for w in found
            for r in [w.record]
        ),
    )


async def models(*, as_json: Json = False, target: Target = DEFAULT) -> None:
    """List the models that are served now."""
    async with target.fleet() as fleet:
        found = await fleet.models()
        free = {model: (await fleet.capacity(model)) for model in found}
    if as_json:
        print_json({m: msgspec.structs.asdict(r) for m, r in found.items()})
        return
    print_table(
        ("model", "languages", "voices", "modes", "native rate", "free", "slots", "requests"),
        (
            (
                *(model + (" (synthetic)" if r.synthetic else ""), ", ".join(r.languages)),
                *(", ".join(r.voices), ", ".join(r.modes), f"{r.native_rate} Hz"),
                *(free[model].slots_free, free[model].slots_total, free[model].requests),
            )
            for model, r in found.items()
        ),
    )


async def sessions(*, as_json: Json = False, target: Target = DEFAULT) -> None:
    """List the sessions that speak now or did so recently."""
    async with target.fleet() as fleet:
        async with aclosing(fleet.sessions()) as walk:
            found = sorted([item async for item in walk], key=lambda item: -item[1].updated_ms)
        now = await now_ms(fleet)
    if as_json:
        print_json([{"session": s, **msgspec.structs.asdict(r)} for s, r in found])
        return
    print_table(
        (
            "session",
            "state",
            "turn",
            "request",
            "model",
            "voice",
            "worker",
            "frames",
            "first",
            "ago",
        ),
        (
            (
                *(session, r.state, r.turn, r.request, r.model, r.voice, r.worker, r.frames),
                *(milliseconds(r.first_audio_ms), age(r.updated_ms, now)),
            )
            for session, r in found
        ),
    )
