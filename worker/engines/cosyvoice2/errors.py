"""Errors of the CosyVoice 2 engines. No message contains the text to be spoken."""

from voicefleet.worker.engines.protocol import EngineError, EngineLoadError


class CosyVoiceError(EngineError):
    """An error of a CosyVoice 2 engine."""


class CosyVoiceInitializationError(CosyVoiceError, EngineLoadError):
    """The model cannot be loaded. The message names each file or option and what is wrong."""


class CosyVoiceSynthesisError(CosyVoiceError):
    """One turn failed; the others continue."""


class CosyVoiceOOMError(CosyVoiceError):
    """One turn failed because the device has no memory left for it."""
