"""Figures that docs/reliability.md shares with the code."""

from tests.harness import ROOT
from verify.chaos.verdict import PROMISES
from verify.model_check.breakages import BREAKAGES
from voicefleet.schemas.request import DEFAULT_SAMPLE_RATE
from voicefleet.worker.config.sections import WorkerConfig
from voicefleet.worker.publish.retention import session_mb

DOCUMENT = (ROOT / "docs/reliability.md").read_text()


def test_figures_are_those_of_the_code() -> None:
    config = WorkerConfig()
    assert f"checks {len(PROMISES)} promises" in DOCUMENT.replace("\n", " ")
    assert len(BREAKAGES) == 17 and "Seventeen deliberate breakages" in DOCUMENT
    for name in ("heartbeat_ms", "dead_after_ms", "lead_ms"):
        assert f"`{name}` ({getattr(config, name)})" in DOCUMENT
    assert f"{session_mb(config.audio_window_s, DEFAULT_SAMPLE_RATE):.1f} MB, " in DOCUMENT
