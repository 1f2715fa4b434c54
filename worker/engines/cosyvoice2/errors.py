"""What can go wrong with a CosyVoice 2 model. No message carries the text that was to be spoken."""

from voicefleet.worker.engines.protocol import EngineError, EngineLoadError


class CosyVoiceError(EngineError):
    """Something went wrong in this engine."""


class CosyVoiceInitializationError(CosyVoiceError, EngineLoadError):
    """The model cannot be loaded: its files, its sizes or its device are not what they should be.

    The message names each file and says what is wrong with it.
    """


class CosyVoiceSynthesisError(CosyVoiceError):
    """A turn failed; the others go on."""


class CosyVoiceOOMError(CosyVoiceError):
    """The device has no memory left for what a turn asked for."""
