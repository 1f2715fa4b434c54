"""``voicefleet worker --one-shot``: one text, no Redis, and the figures."""

import wave
from pathlib import Path

import numpy as np
import pytest

from tests.harness import ROOT, hosted_core
from voicefleet.cli import main
from voicefleet.worker.config.sections import Config, ModelManagerConfig, WorkerConfig
from voicefleet.worker.engines import registry
from voicefleet.worker.engines.hosting.engine import HostedEngine
from voicefleet.worker.engines.hosting.in_process import InProcessEngine
from voicefleet.worker.engines.protocol import Engine
from voicefleet.worker.engines.registry import EngineConfig, UnknownModelError
from voicefleet.worker.local.one_shot import one_shot
from voicefleet.worker.voicepacks.voicepack import Voicepack

TONE = str(ROOT / "configs" / "tone.yaml")
TEXT = "A first sentence. And a second one."


def config(*models: str) -> Config:
    return Config(
        worker=WorkerConfig(models=models),
        model_manager=ModelManagerConfig(voicepacks_dir=str(ROOT / "voicepacks")),
    )


def test_it_is_written_and_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speech.wav"
    assert main(["worker", "--config", TONE, "--one-shot", TEXT, "--out", str(out)]) == 0
    output = capsys.readouterr().out
    for line in ("model        tone-test on cpu", "load", "warm-up", "first chunk", "RTF"):
        assert line in output
    with wave.open(str(out)) as wav:
        assert (wav.getframerate(), wav.getnchannels()) == (24_000, 1)
        assert np.any(np.frombuffer(wav.readframes(wav.getnframes()), "<i2"))
        assert f"{wav.getnframes() / 24_000:.2f} s in" in output


def test_it_need_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["worker", "--config", TONE, "--one-shot", TEXT, "--out", "-"]) == 0
    assert "RTF" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_worker_is_not_run_in_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", "--config", TONE, "--in-process"]) == 1
    assert "--in-process is for --one-shot" in capsys.readouterr().err


@pytest.mark.anyio
async def test_in_a_child_and_in_process_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def child(pack: Voicepack, _: EngineConfig) -> Engine:
        return HostedEngine(pack, hosted_core.NAME, {})

    def here(pack: Voicepack, _: EngineConfig) -> Engine:
        return InProcessEngine(pack, hosted_core.build, {})

    monkeypatch.setattr(registry, "build", child)
    monkeypatch.setattr(registry, "build_in_process", here)
    one = await one_shot(config("tone-test"), TEXT)
    other = await one_shot(config("tone-test"), TEXT, in_process=True)
    assert np.array_equal(one.samples, other.samples)
    assert one.phases_ms == other.phases_ms == {"load": 1.0, "warm_up": 44.0}
    assert one.audio_s == len(one.samples) / 24_000 > 1
    assert 0 < one.first_chunk_ms <= one.spoken_ms


@pytest.mark.anyio
@pytest.mark.parametrize("models", [(), ("tone-best",)])
async def test_a_model_that_is_not_there_is_named(models: tuple[str, ...]) -> None:
    with pytest.raises(UnknownModelError, match=r"the voicepacks are .*tone-test"):
        await one_shot(config(*models), TEXT)
