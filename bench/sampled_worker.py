"""A worker under the sampling profiler: ``python -m bench.sampled_worker FILE CONFIG ...``.

It is the worker that ``voicefleet worker`` runs, with the profiler beside it. SIGUSR1 begins to
count and SIGUSR2 ends it; the counted stacks are in FILE when the worker has ended.
"""

import signal
import sys
from pathlib import Path

import msgspec

from bench.sampler import Sampler
from bench.testbed import ROOT
from voicefleet.cli import main


def sample(path: Path, arguments: list[str]) -> int:
    """Run the worker and write its samples."""
    sampler = Sampler(ROOT)
    signal.signal(signal.SIGUSR1, lambda *_: sampler.start())
    signal.signal(signal.SIGUSR2, lambda *_: sampler.stop())
    status = main(["worker", "--config", *arguments])
    path.write_bytes(msgspec.json.encode(sampler.samples))
    return status


if __name__ == "__main__":
    sys.exit(sample(Path(sys.argv[1]), sys.argv[2:]))
