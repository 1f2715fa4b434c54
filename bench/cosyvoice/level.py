"""The results of one load, as one row of a table."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from bench.cosyvoice.listening import Heard
from bench.percentiles import Percentiles
from bench.report import Figure, figure


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """One load. Times are in ms; percentiles are None if nothing was measured.

    ``first`` is the time from a turn's request to its first audio, ``audible`` to its first sample
    above -50 dB of its peak; ``first_piece`` is the duration of the first audio. ``rtf`` is a
    session's time for each second of audio under this load. ``x_real_time`` is all audio divided by
    the time from the first turn to the last sample.
    """

    load: str
    sessions: float
    turns: int
    failed: int
    waited: int
    first: Percentiles | None
    audible: Percentiles | None
    rtf: Percentiles | None
    first_piece: Percentiles | None
    stop: Percentiles | None
    underruns: int
    underrun_turns: int
    worst_underrun_ms: float
    audio_s: float
    wall_s: float
    x_real_time: float
    more: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """The level's part of a figure's name."""
        unit = "turns/s" if self.load == "open" else "sessions"
        return f"{self.load}, {self.sessions:g} {unit}"


def level_of(
    load: str,
    sessions: float,
    heard: Sequence[Heard],
    began_at: float,
    waited: int = 0,
    **more: Any,
) -> Level:
    """Summarise the turns of a load."""
    whole = [one for one in heard if one.stop_s is None and one.failed is None]
    late = [1000 * late for one in whole for late in one.late_s]
    audio_s = sum(one.audio_s for one in heard)
    ended = max((one.last_at for one in heard), default=began_at)
    wall_s = max(ended - began_at, 1e-9)
    return Level(
        load=load,
        sessions=sessions,
        turns=len(heard),
        failed=sum(one.failed is not None for one in heard),
        waited=waited,
        first=_of(1000 * (one.first_at - one.asked_at) for one in heard),
        audible=_of(1000 * (one.audible_at - one.asked_at) for one in whole),
        rtf=_of((one.last_at - one.opened_at) / one.audio_s for one in whole if one.audio_s),
        first_piece=_of(1000 * one.first_piece_s for one in whole),
        stop=_of(1000 * one.stop_s for one in heard if one.stop_s is not None),
        underruns=len(late),
        underrun_turns=sum(bool(one.late_s) for one in whole),
        worst_underrun_ms=max(late, default=0.0),
        audio_s=audio_s,
        wall_s=wall_s,
        x_real_time=audio_s / wall_s,
        more=more,
    )


def figures_of(level: Level, targets: dict[str, float]) -> list[Figure]:
    """A level's figures. ``targets`` by number of sessions: the first audio's p95, in ms."""
    name, figures = level.name, list[Figure]()
    if level.stop is not None:
        for which in ("p50", "p95", "max"):
            value = getattr(level.stop, which)
            target = targets.get("stop") if which == "p95" else None
            figures.append(
                figure(
                    f"{name}, stop to slot free, {which}",
                    value,
                    "ms",
                    target=target,
                    samples=level.stop.count,
                )
            )
        return figures
    if level.load != "greedy":
        for what, found in (("first audio", level.first), ("first audible", level.audible)):
            if found is None:
                continue
            for which in ("p50", "p95", "p99"):
                target = None
                if what == "first audio" and which == "p95" and level.load == "closed":
                    target = targets.get(f"{level.sessions:g}")
                figures.append(
                    figure(
                        f"{name}, {what}, {which}",
                        getattr(found, which),
                        "ms",
                        target=target,
                        samples=found.count,
                    )
                )
        underrun_target = targets.get("underruns") if level.load == "closed" else None
        figures.append(
            figure(
                f"{name}, underruns",
                level.underruns,
                "",
                target=underrun_target,
                samples=level.turns,
            )
        )
        if level.first_piece is not None:
            figures.append(
                figure(f"{name}, length of the first audio, p50", level.first_piece.p50, "ms")
            )
        if level.underruns:
            figures.append(figure(f"{name}, worst underrun", level.worst_underrun_ms, "ms"))
    else:
        if level.rtf is not None:
            figures.append(
                figure(f"{name}, RTF of a session, p50", level.rtf.p50, "", samples=level.rtf.count)
            )
        figures.append(
            figure(
                f"{name}, all sessions' RTF",
                1 / max(level.x_real_time, 1e-9),
                "",
                target=targets.get("rtf"),
            )
        )
    figures.append(figure(f"{name}, x real time", level.x_real_time, "x"))
    if level.failed:
        figures.append(figure(f"{name}, failed turns", level.failed, "", target=0))
    return figures


def _of(values: Iterable[float]) -> Percentiles | None:
    found = [value for value in values if math.isfinite(value)]
    return Percentiles.of(found) if found else None
