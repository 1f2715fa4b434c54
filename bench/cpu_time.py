"""Processor time of a process over a period."""

import time
from typing import Self

import msgspec
import psutil


class CpuMark(msgspec.Struct, frozen=True):
    """A process's processor time so far, in seconds, at a moment in monotonic ns.

    All threads, user and system. The kernel counts in ticks of 10 ms: measure over seconds.
    """

    at: int
    used_s: float

    @classmethod
    def of(cls, process: psutil.Process) -> Self:
        """The present mark."""
        times = process.cpu_times()
        return cls(time.monotonic_ns(), times.user + times.system)

    def share_until(self, later: Self) -> float:
        """The share of one core used between two marks."""
        return (later.used_s - self.used_s) / ((later.at - self.at) / 1e9)
