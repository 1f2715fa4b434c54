"""The plan of a measurement: device, loads and sizes."""

from collections.abc import Iterator
from typing import Final, Literal, get_args

import msgspec

from bench.cosyvoice.load import Closed, Load, Poisson
from bench.cosyvoice.packs import PackName
from bench.cosyvoice.texts import SECONDS

Part = Literal["levels", "batching", "one-slot", "upstream", "upstream-exact"]
"""The parts of the engine bench. The last three are baselines."""

ALONE: Final[tuple[Part, ...]] = ("levels", "batching")
COMPARED: Final[tuple[Part, ...]] = get_args(Part)


class EnginePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The loads to run.

    ``sessions`` are the numbers of listeners of the closed loads, ``rates`` the turns per second of
    the open ones, ``rows`` the sizes of the batches measured alone; a load lasts ``seconds``.
    ``brief``: only one closed load and the greedy ones, for engines far slower than real time.
    """

    device: str
    dtype: str
    graphs: bool = True
    threads: int = 0
    sessions: tuple[int, ...]
    rates: tuple[float, ...]
    rows: tuple[int, ...]
    seconds: float = 20.0
    texts: tuple[float, float] = SECONDS
    repeats: int = 7
    device_times: bool = False
    suffix: str = ""
    brief: bool = False
    words: tuple[str, ...] = ()

    @property
    def machine_word(self) -> str:
        """The device's name in titles."""
        return "GPU" if self.device == "cuda" else "CPU"

    def label(self, pack: PackName) -> str:
        """The part of file names."""
        graphs = "" if self.graphs or self.device != "cuda" else "_eager"
        suffix = f"_{self.suffix}" if self.suffix else ""
        return f"{pack}_{self.machine_word.lower()}_{self.dtype}{graphs}{suffix}"

    def loads(self) -> Iterator[tuple[Load, float]]:
        """Yield the loads in order, each with its number of sessions or its rate."""
        texts = self.texts
        if self.brief:
            yield Closed(1, 0.0, texts=texts), 1
            for n in self.sessions:
                yield Closed(n, 0.0, paced=False, name="greedy", texts=texts), n
            return
        for n in self.sessions:
            yield Closed(n, self.seconds, texts=texts), n
        most = self.sessions[-1]
        # All listeners request one turn at the same moment.
        yield Closed(most, 0.0, together=True, name="together", texts=texts), most
        for rate in self.rates:
            yield Poisson(rate, self.seconds, texts), rate
        for n in dict.fromkeys((self.sessions[0], most)):
            yield Closed(n, self.seconds / 2, paced=False, name="greedy", texts=texts), n
        stop_after = (0.2, 2.0)
        yield (
            Closed(most, self.seconds / 4, stop_after=stop_after, name="stopped", texts=texts),
            most,
        )


GPU_SESSIONS: Final = (1, 2, 4, 8, 16, 32, 64)
GPU_RATES: Final = (1.0, 4.0, 8.0)
"""Turns take 7 s on average, so 8 turns per second are 56 listeners."""

CPU_SESSIONS: Final[dict[PackName, tuple[int, ...]]] = {"tiny": (1, 2, 4, 8, 16), "full": (1, 2)}
CPU_RATES: Final[dict[PackName, tuple[float, ...]]] = {"tiny": (0.1, 0.4), "full": ()}


QUICK_TEXTS: Final = (2.0, 6.0)


def plan_of(
    pack: PackName,
    device: str,
    dtype: str,
    *,
    graphs: bool = True,
    quick: bool = False,
    threads: int = 0,
    sessions: tuple[int, ...] = (),
    seconds: float | None = None,
    texts: tuple[float, float] | None = None,
    words: tuple[str, ...] = (),
) -> EnginePlan:
    """The default plan for a device, with what was asked for."""
    if device == "cuda":
        all_sessions, rates = GPU_SESSIONS, GPU_RATES
        rows: tuple[int, ...] = (1, 4, 16, 64)
        if quick:
            all_sessions, rates = (1, 16, 64), (8.0,)
    else:
        all_sessions, rates = CPU_SESSIONS[pack], CPU_RATES[pack]
        rows = (1, 2, 4, 8, 16) if pack == "tiny" else (1, 2)
        if quick:
            all_sessions, rates, rows = all_sessions[:2], rates[:1], rows[:2]
    brief = device == "cpu" and pack == "full"
    chosen = sessions or all_sessions
    return EnginePlan(
        device=device,
        dtype=dtype,
        graphs=graphs,
        threads=threads,
        sessions=chosen,
        rates=rates,
        rows=rows,
        seconds=seconds or (4.0 if quick else 20.0),
        texts=texts or ((2.0, 2.0) if brief else QUICK_TEXTS if quick else SECONDS),
        repeats=1 if brief else 3 if quick else 7,
        brief=brief,
        words=words,
    )
