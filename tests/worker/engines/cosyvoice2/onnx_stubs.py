"""A model folder with stand-ins for the parts that read recordings and text."""

from pathlib import Path

from voicefleet.worker.engines.cosyvoice2.pack.stubs import (
    write_speaker_encoder,
    write_speech_tokenizer,
    write_text_tokenizer,
)

__all__ = [
    "write_front",
    "write_speaker_encoder",
    "write_speech_tokenizer",
    "write_text_tokenizer",
]


def write_front(directory: Path) -> None:
    """The files of a published model folder that the frontend reads."""
    directory.mkdir(parents=True, exist_ok=True)
    write_speaker_encoder(directory / "campplus.onnx")
    write_speech_tokenizer(directory / "speech_tokenizer_v2.onnx")
    write_text_tokenizer(directory / "CosyVoice-BlankEN")
