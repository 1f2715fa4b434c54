"""Checks a CosyVoice 2 voicepack without loading it. Needs no torch."""

from pathlib import Path

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.pack import layout, model_yaml


def check(directory: Path, native_rate: int) -> list[str]:
    """Problems that would keep ``directory`` from being loaded; empty if none is found."""
    findings = [f"there is no {directory / name}" for name in layout.missing(directory)]
    path = directory / layout.HYPERPARAMETERS
    if not path.is_file() or not (directory / layout.QWEN / "config.json").is_file():
        return findings
    try:
        rate = model_yaml.read(path).sample_rate
    except CosyVoiceInitializationError as error:
        return [*findings, *str(error).splitlines()]
    if rate != native_rate:
        findings.append(f"native_rate is {native_rate} Hz, but {path} says {rate} Hz")
    return findings
