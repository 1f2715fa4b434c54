"""The fleet's Piper compared with Piper's own command line and API, on the same texts.

The fleet does more for the same text: a request through Redis, loudness, a limiter, 48 kHz,
frames, a reader. All of it is in its figures. Each of the three gets one core, the same one, and
one inference thread, so what differs is the way and not the means. The command line as it comes
takes every core for one text; it is shown too, as what a single listener could have alone.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

from bench.audio_stream import Kind, entries
from bench.percentiles import Percentiles
from bench.piper_reference import (
    AS_IT_COMES,
    ONE_THREAD,
    WARM_UP,
    Api,
    Spoken,
    command_line,
    core_to_pin,
    pin,
)
from bench.plan import Plan
from bench.report import Figure, Report, figure
from bench.resp import Connection, pack
from bench.testbed import PIPER, Testbed, testbed
from voicefleet.schemas.audio import FRAME_MS
from voicefleet.worker.voicepacks import voicepack

MODEL: Final = "piper-en-joe"
TARGET_RATIO: Final = 1.1
TEXTS: Final = {
    "short": "The train is on time.",
    "question": "Would you like me to read the second message as well?",
    "sentence": "Tomorrow will be mostly cloudy, with a little rain in the west "
    "and highs around fifteen degrees.",
    "two sentences": "Your order has left the warehouse this morning. It should arrive "
    "on Thursday, between ten in the morning and noon.",
    "long": "When the harbour was built, more than two hundred years ago, nobody expected that "
    "ships would one day be longer than the whole of the quay, and so the town has been moving "
    "its cranes, its customs house and finally its station further and further out to sea.",
}
FLEET: Final = "fleet"
COMMAND_LINE: Final = "piper command line"
API: Final = "piper API"
ALL_CORES: Final = "piper command line, all cores"


def run(plan: Plan) -> Report:
    """Speak each text with each of them, ``plan.rounds`` times."""
    pack_of_voice = voicepack.discover(voicepack.default_directory(""))[MODEL]
    model, rate = pack_of_voice.file("model"), pack_of_voice.native_rate
    cpu = core_to_pin()
    with (
        testbed(PIPER, MODEL, "engine.piper.threads=1") as bed,
        Api(model, cpu) as api,
        bed.connect() as connection,
    ):
        pin(bed.worker.pid, cpu)
        _speak(bed, connection, "warm-up", WARM_UP)
        sessions = iter(f"piper-{i}" for i in range(plan.rounds * len(TEXTS)))
        speakers: dict[str, Callable[[str], Spoken]] = {
            FLEET: lambda text: _speak(bed, connection, next(sessions), text),
            COMMAND_LINE: lambda text: command_line(ONE_THREAD, model, rate, text, cpu),
            API: api.speak,
            ALL_CORES: lambda text: command_line(AS_IT_COMES, model, rate, text, None),
        }
        spoken = _in_turn(speakers, plan.rounds)
    return Report(
        bench="piper",
        title="The fleet's Piper beside Piper's own",
        conditions=(
            f"{MODEL}; {len(TEXTS)} texts of {min(map(len, TEXTS.values()))} to "
            f"{max(map(len, TEXTS.values()))} characters, {plan.rounds} rounds; they take "
            "turns on each text, in an order that rotates",
            "no load time: each process has its voice in memory and has spoken once",
            "each is pinned to the same one core, with one inference thread; the server and the "
            f"client have the others. {ALL_CORES!r} is Piper as it comes: not pinned, a thread "
            "for each core, where the fleet would speak a second session instead",
            "the fleet's time is from XADD to the entry's arrival (lead 0) and includes loudness, "
            "limiter, 48 kHz and Redis; Piper's is to the audio in its pipe or list, at 22 050 Hz",
            "RTF is time over the length of the audio made; that length differs by noise between "
            "runs, and the fleet's has its pauses after sentences, so the time for the same texts "
            "is compared too",
        ),
        figures=tuple(_figures(spoken)),
        series={
            speaker: {
                name: [
                    {"first_s": one.first_s, "total_s": one.total_s, "audio_s": one.audio_s}
                    for one in runs
                ]
                for name, runs in texts.items()
            }
            for speaker, texts in spoken.items()
        },
    )


def _in_turn(
    speakers: dict[str, Callable[[str], Spoken]], rounds: int
) -> dict[str, dict[str, list[Spoken]]]:
    """Runs by speaker and text."""
    spoken: dict[str, dict[str, list[Spoken]]] = {s: {t: [] for t in TEXTS} for s in speakers}
    order = list(speakers)
    for _ in range(rounds):
        for name, text in TEXTS.items():
            for speaker in order:
                spoken[speaker][name].append(speakers[speaker](text))
            order.append(order.pop(0))
    return spoken


def _speak(bed: Testbed, connection: Connection, session: str, text: str) -> Spoken:
    """One turn of the fleet."""
    stream, last = bed.keys.audio(session), b"0-0"
    queue = bed.keys.requests(bed.model)
    add = pack("XADD", queue, "*", "session", session, "text", text, "lead_ms", 0)
    with bed.connect() as reader:
        reader.send(pack("XREAD", "BLOCK", 0, "STREAMS", stream, last))
        connection.call("PING")
        begin = connection.send(add)
        connection.receive()
        first, frames = 0, 0
        while True:
            reply, arrival = reader.receive()
            for entry in entries(reply[0]):
                if entry.kind is Kind.FRAME:
                    first = first or arrival
                    frames += 1
                elif entry.kind is Kind.END:
                    time.sleep(0.02)  # let the worker finish the turn first
                    audio_s = frames * FRAME_MS / 1000
                    return Spoken((first - begin) / 1e9, (arrival - begin) / 1e9, audio_s)
                last = entry.id
            reader.send(pack("XREAD", "BLOCK", 0, "STREAMS", stream, last))


def _figures(spoken: dict[str, dict[str, list[Spoken]]]) -> list[Figure]:
    figures: list[Figure] = []
    for speaker, texts in spoken.items():
        runs = [one for some in texts.values() for one in some]
        first = Percentiles.of(one.first_s * 1000 for one in runs)
        figures += [
            figure(f"{speaker}, RTF", _over_texts(texts, _rtf), "", samples=len(runs)),
            figure(f"{speaker}, first audio, p50", first.p50, "ms", samples=first.count),
            figure(f"{speaker}, first audio, p95", first.p95, "ms", samples=first.count),
            figure(f"{speaker}, audio made", _over_texts(texts, _audio_s), "s a text"),
        ]
    for other, most in ((COMMAND_LINE, TARGET_RATIO), (API, TARGET_RATIO), (ALL_CORES, None)):
        for what, of, target in (
            ("RTF", _rtf, most),
            ("time for the same text", _total_s, None),
            ("first audio", _first_s, None),
        ):
            ratio = _ratio(spoken[FLEET], spoken[other], of)
            figures.append(figure(f"{what}, fleet / {other}", ratio, "x", target=target))
    return figures


Texts = dict[str, list[Spoken]]


def _ratio(ours: Texts, theirs: Texts, of: Callable[[Spoken], float]) -> float:
    """The geometric mean over the texts of the ratio of medians."""
    return statistics.geometric_mean(
        _median(ours[name], of) / _median(theirs[name], of) for name in TEXTS
    )


def _over_texts(texts: Texts, of: Callable[[Spoken], float]) -> float:
    """The mean over the texts of the median over the rounds."""
    return statistics.fmean(_median(runs, of) for runs in texts.values())


def _median(runs: list[Spoken], of: Callable[[Spoken], Any]) -> float:
    return statistics.median(of(one) for one in runs)


def _rtf(one: Spoken) -> float:
    return one.rtf


def _first_s(one: Spoken) -> float:
    return one.first_s


def _total_s(one: Spoken) -> float:
    return one.total_s


def _audio_s(one: Spoken) -> float:
    return one.audio_s
