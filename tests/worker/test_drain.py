"""The thread that ends a process whose drain takes too long."""

import os
import queue
import threading
import time

import pytest

from voicefleet.worker.drain import _end_in_time  # pyright: ignore[reportPrivateUsage]


def test_a_limit_counts_from_the_signal_however_long_the_worker_has_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: queue.SimpleQueue[float] = queue.SimpleQueue()

    def end(_status: int) -> None:
        ended.put(time.monotonic())
        threading.Event().wait()

    monkeypatch.setattr(os, "_exit", end)
    limits: queue.SimpleQueue[float] = queue.SimpleQueue()
    threading.Thread(target=_end_in_time, args=(limits,), daemon=True).start()
    time.sleep(0.3)  # longer than the limit
    begun = time.monotonic()
    limits.put(0.2)
    assert ended.get(timeout=30) - begun >= 0.2
