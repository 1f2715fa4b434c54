"""Collects a pack's voices from all their sources."""

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.voices import files
from voicefleet.worker.engines.cosyvoice2.voices.enrol import enrol
from voicefleet.worker.engines.cosyvoice2.voices.voice import Voice
from voicefleet.worker.voicepacks.voicepack import Voicepack


def voices(pack: Voicepack) -> dict[str, Voice]:
    """The pack's voices by name: its files, the recordings it names, upstream's speakers.

    Raises:
        CosyVoiceInitializationError: There is no voice, one is invalid, or the default is missing.
    """
    found = files.voices_of(pack.directory)
    for name, prompt in pack.prompts.items():
        if name not in found:
            found[name] = enrol(pack, name, pack.directory / prompt.audio, prompt.text)
    for name, speaker in files.sft_speakers(pack.directory / "spk2info.pt").items():
        found.setdefault(name, speaker)
    if not found:
        raise CosyVoiceInitializationError(
            f"{pack.model_id} has no voice: add one with voicefleet voices add NAME --wav FILE "
            "--text '...'"
        )
    if pack.default_voice is not None and pack.default_voice not in found:
        raise CosyVoiceInitializationError(
            f"{pack.model_id}: default_voice {pack.default_voice!r} is not one of "
            f"{', '.join(found)}"
        )
    return found
