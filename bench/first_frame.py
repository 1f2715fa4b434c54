"""From XADD to the first frame: the time that the fleet adds to its engine's.

A probe listens before it asks: its XREAD is blocked on the session's stream when the request is
added, and its clock runs from the XADD's first byte to the arrival of entry ``<turn>-1``. What
the engine and the audio chain need for a first chunk is measured in process, on the same request,
and its median is subtracted.
"""

import random
import time
from contextlib import aclosing
from typing import Final

import anyio
import numpy as np

from bench.audio_stream import entries
from bench.live_sessions import live_sessions
from bench.percentiles import Percentiles
from bench.plan import Plan
from bench.report import Report, figure, percentile_figures
from bench.resp import Connection, pack
from bench.testbed import TONE, Testbed, testbed
from voicefleet.schemas.request import Request, TextPiece
from voicefleet.worker.audio.chain import AudioChain
from voicefleet.worker.config.sections import AudioConfig
from voicefleet.worker.engines.protocol import TurnSpec
from voicefleet.worker.engines.tone.engine import ToneEngine
from voicefleet.worker.engines.tone.family import ToneConfig
from voicefleet.worker.models.loaded_model import LoadedModel
from voicefleet.worker.text.feed import TextFeed
from voicefleet.worker.voicepacks import voicepack

MODEL: Final = "tone-test"
TEXT: Final = "Hi."
"""Shorter than the lead, so that a probe's turn is over before the next one."""

TARGETS: Final = {"p50": 3.0, "p99": 10.0}
LIVE: Final = 50
GAP_S: Final = (0.005, 0.045)
"""Between probes, so that they arrive at any moment of the worker's 20 ms."""

_ENGINE_RUNS: Final = 300


def run(plan: Plan) -> Report:
    """Time first frames on an idle fleet and beside living sessions."""
    engine_ms = anyio.run(_engine_ms)
    gaps_s = plan.probes * sum(GAP_S) / 2
    with testbed(TONE, MODEL, f"engine.tone.slots={LIVE + 14}") as bed:
        idle = _probes(bed, plan.probes, "idle")
        with live_sessions(bed, LIVE, 4 * gaps_s + 10) as live:
            busy = _probes(bed, plan.probes, "busy")
            heard = live.listener.stop()
    net_idle, net_busy = idle - engine_ms, busy - engine_ms
    return Report(
        bench="first_frame",
        title="XADD to first frame readable, engine time subtracted",
        conditions=(
            f"tone engine at rtf 0; text {TEXT!r}; a new session for each probe; worker, server, "
            "client and, beside the probes, a listener on the living sessions: a process each",
            "the probe's XREAD is blocked before the XADD leaves; a random pause of "
            f"{GAP_S[0] * 1000:.0f} to {GAP_S[1] * 1000:.0f} ms after each probe",
            f"subtracted: {engine_ms:.2f} ms, the median of {_ENGINE_RUNS} first chunks of 200 ms "
            "made in process by the worker's own segmenter, engine and audio chain",
            f"the {LIVE} live sessions were read by a listener that used {heard.cpu_share:.0%} of "
            "a core",
        ),
        figures=(
            *percentile_figures("idle fleet", Percentiles.of(net_idle), "ms", **TARGETS),
            *percentile_figures(f"{LIVE} sessions live", Percentiles.of(net_busy), "ms", **TARGETS),
            figure("idle fleet, engine included, p50", Percentiles.of(idle).p50, "ms"),
            figure(f"{LIVE} live, engine included, p50", Percentiles.of(busy).p50, "ms"),
            figure("engine and audio chain, first chunk", engine_ms, "ms", samples=_ENGINE_RUNS),
        ),
        series={"idle": net_idle.tolist(), f"{LIVE} sessions live": net_busy.tolist()},
    )


def _probes(bed: Testbed, count: int, prefix: str) -> np.ndarray:
    """XADD to first frame in ms, ``count`` times."""
    moments = random.Random(prefix)
    with bed.connect() as client, bed.connect() as reader:
        waits: list[float] = []
        for i in range(count):
            waits.append(_probe(bed, client, reader, f"{prefix}-{i}"))
            time.sleep(moments.uniform(*GAP_S))
        return np.array(waits)


def _probe(bed: Testbed, client: Connection, reader: Connection, session: str) -> float:
    stream = bed.keys.audio(session)
    last = b"0-0"
    add = pack("XADD", bed.keys.requests(bed.model), "*", "session", session, "text", TEXT)
    reader.send(pack("XREAD", "BLOCK", 0, "STREAMS", stream, last))
    # The server serves connections in any order: make sure that the reader blocks first.
    client.call("PING")
    sent = client.send(add)
    while True:
        reply, arrival = reader.receive()
        for entry in entries(reply[0]):
            if entry.n == 1:
                client.receive()
                return (arrival - sent) / 1e6
            last = entry.id
        reader.send(pack("XREAD", "BLOCK", 0, "STREAMS", stream, last))


async def _engine_ms() -> float:
    """The median time to make a first chunk of frames of the probe's request."""
    packs = voicepack.discover(voicepack.default_directory(""))
    engine = ToneEngine(packs[MODEL], ToneConfig())
    await engine.load()
    gain = await LoadedModel(engine, packs[MODEL], AudioConfig()).gain(engine.info.default_voice)
    times = [await _first_chunk_ms(engine, gain, seed) for seed in range(_ENGINE_RUNS)]
    return Percentiles.of(times).p50


async def _first_chunk_ms(engine: ToneEngine, gain: float, seed: int) -> float:
    begin = time.perf_counter()
    feed = TextFeed(engine.info.limits, timeout_s=1.0, most_chars=10_000)
    feed.push(TextPiece(text=TEXT, end=True))
    chain = AudioChain(engine.info.native_rate, Request(session="").sample_rate, gain=gain)
    spec = TurnSpec(voice=engine.info.default_voice, seed=seed)
    async with aclosing(engine.speak(spec, feed.segments())) as chunks:
        async for chunk in chunks:
            if chain.push(chunk):
                break
    return (time.perf_counter() - begin) * 1000
