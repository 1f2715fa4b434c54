"""Every parser reads some hundred malformed inputs; ``python -m verify fuzz`` runs more.

``VOICEFLEET_TEST_FUZZ_SEED`` picks others. What is found is replayed with
``python -m verify.fuzz replay TARGET SEED NUMBER``.
"""

import os

import pytest

from verify.fuzz.campaign import GROWTH_MB, hunt
from verify.fuzz.targets import TARGETS, TORCH, lacking

SEED = int(os.environ.get("VOICEFLEET_TEST_FUZZ_SEED", "1"))
COUNTS = {"piper": 15, "sizes": 40, "settings": 120, "recordings": 60}
"""Inputs by what is read: those of models take tenths of a second each."""


@pytest.mark.timeout(300)  # a ceiling against hangs, on a machine that is busy
@pytest.mark.parametrize("name", [name for name in TARGETS if TARGETS[name].needs != TORCH])
def test_nothing_breaks(name: str) -> None:
    if packages := lacking(name):
        pytest.skip(f"needs {', '.join(packages)}")
    count = COUNTS.get(TARGETS[name].module, 300)
    report = hunt(name, seed=SEED, count=count)
    assert report.finds == []
    assert report.growth_mb <= GROWTH_MB
    assert report.inputs == report.taken + report.refused == count
