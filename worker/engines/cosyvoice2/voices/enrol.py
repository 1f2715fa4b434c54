"""Makes a voice of a recording, with a pack's networks."""

from datetime import UTC, datetime
from pathlib import Path

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.voices.prompt import PromptReader
from voicefleet.worker.engines.cosyvoice2.voices.recording import read_recording
from voicefleet.worker.engines.cosyvoice2.voices.voice import Voice, aligned
from voicefleet.worker.voicepacks.voicepack import Voicepack

SPEAKER_ENCODER = "campplus.onnx"
SPEECH_TOKENIZER = "speech_tokenizer_v2.onnx"


def enrol(pack: Voicepack, name: str, recording: Path, text: str) -> Voice:
    """Make a voice of a recording. Its gain is not measured.

    Args:
        pack: Its folder holds the networks, unless its ``source.files`` name them as
            ``speaker_encoder`` and ``speech_tokenizer``.
        name: What requests will call the voice.
        recording: 3 to 30 s of one speaker: WAV, FLAC, OGG or MP3, at any rate.
        text: Its transcript, word for word.

    Raises:
        RecordingError: The recording cannot be used.
        CosyVoiceInitializationError: A network is missing, or ``name`` is not a valid name.
    """
    encoder = _network(pack, "speaker_encoder", SPEAKER_ENCODER)
    tokenizer = _network(pack, "speech_tokenizer", SPEECH_TOKENIZER)
    samples, rate = read_recording(recording)
    prompt = PromptReader(encoder, tokenizer).read(samples, rate)
    voice = Voice(
        name=name,
        speaker=prompt.speaker,
        prompt_text=text.strip(),
        speech_tokens=prompt.speech_tokens,
        flow_tokens=prompt.speech_tokens,
        mel=prompt.mel,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source_rate=rate,
        seconds=prompt.seconds,
    )
    # The flow's prompt becomes whole blocks, so that no turn renders a part of one again.
    return aligned(voice, first_tokens=25)


def _network(pack: Voicepack, role: str, published: str) -> Path:
    """The file that the pack names for ``role``, else the published one in its folder."""
    if role in pack.source.files:
        return pack.file(role)
    path = pack.directory / published
    if not path.is_file():
        raise CosyVoiceInitializationError(
            f"{pack.model_id}: there is no {path}: "
            f"run `voicefleet voicepacks fetch {pack.model_id}`"
        )
    return path
