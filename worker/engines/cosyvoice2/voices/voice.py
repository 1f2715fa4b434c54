"""A voice: the model inputs made of a reference recording, with their checks.

Each voice is one safetensors file in ``<pack>/voices/``, named after it. Needs no tensor library.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.hyperparameters import FlowSizes

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

FOLDER = "voices"
SUFFIX = ".safetensors"
FORMAT = "cosyvoice2-voice"
VERSION = "1"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}", re.ASCII)
"""As ``voicepacks.Name``: what a request may contain, and what is safe as a file name."""

_SIZES = FlowSizes()
_BANDS, _SPEAKER, _FRAMES = _SIZES.mel_bands, _SIZES.speaker_width, _SIZES.frames_per_token


class VoiceError(CosyVoiceInitializationError):
    """A voice or its file is invalid. The message names it."""


def no_tokens() -> I64:
    """The tokens of a voice without a recording: int64 ``[0]``."""
    return np.zeros(0, dtype=np.int64)


def no_frames() -> F32:
    """The mel of a voice without a recording: float32 ``[0, bands]``."""
    return np.zeros((0, _BANDS), dtype=np.float32)


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Voice:
    """The model inputs of a voice.

    Attributes:
        name: The name that requests use.
        speaker: The speaker embedding, f32 ``[192]``; all that a voice without a recording has.
        prompt_text: The recording's transcript.
        prompt_text_tokens: Its tokens, if the transcript itself is not known.
        speech_tokens: The language model's prompt, int64 ``[P]``.
        flow_tokens: The flow's prompt, int64 ``[Q]``: the end of the same recording.
        mel: Its mel frames, f32 ``[2 Q, 80]``.
        gain: The linear gain that brings the voice to the common loudness; None if not measured.
        created: ISO 8601.
        source_rate: The recording's sample rate in Hz.
        seconds: The recording's duration.

    Raises:
        VoiceError: A name, shape, dtype or token is invalid, or a number is not finite.
    """

    name: str
    speaker: F32
    prompt_text: str = ""
    prompt_text_tokens: I64 | None = None
    speech_tokens: I64 = field(default_factory=no_tokens)
    flow_tokens: I64 = field(default_factory=no_tokens)
    mel: F32 = field(default_factory=no_frames)
    gain: float | None = None
    created: str = ""
    source_rate: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        checked_name(self.name)
        self._expect("speaker", np.float32, (_SPEAKER,))
        self._expect("speech_tokens", np.int64, (None,))
        self._expect("flow_tokens", np.int64, (None,))
        self._expect("mel", np.float32, (_FRAMES * len(self.flow_tokens), _BANDS))
        if self.prompt_text_tokens is not None:
            self._expect("prompt_text_tokens", np.int64, (None,))
        checked_tokens(self.speech_tokens, f"voice {self.name}: speech_tokens")
        checked_tokens(self.flow_tokens, f"voice {self.name}: flow_tokens")
        if not np.any(self.speaker):
            raise VoiceError(f"voice {self.name}: speaker is all zeros")
        if self.gain is not None and not 0.0 < self.gain < 1e4:
            raise VoiceError(f"voice {self.name}: gain {self.gain} is no gain")
        if not (0.0 <= self.seconds < 1e6 and self.source_rate >= 0):
            raise VoiceError(f"voice {self.name}: its recording has no length, or no rate")

    @property
    def has_prompt(self) -> bool:
        """Whether it has a recording, which the zero-shot mode needs."""
        return len(self.speech_tokens) > 0

    def _expect(self, name: str, dtype: type[np.generic], shape: tuple[int | None, ...]) -> None:
        array = cast("NDArray[Any]", getattr(self, name))
        right = array.ndim == len(shape) and all(
            wanted in (None, size) for wanted, size in zip(shape, array.shape, strict=True)
        )
        if not right or array.dtype != dtype:
            wanted = ["n" if size is None else size for size in shape]
            raise VoiceError(
                f"voice {self.name}: {name} is {array.dtype} {list(array.shape)}, "
                f"not {np.dtype(dtype)} [{', '.join(map(str, wanted))}]"
            )
        if array.dtype == np.float32 and not np.isfinite(array).all():
            raise VoiceError(f"voice {self.name}: {name} is not finite")


def checked_name(name: str) -> str:
    """Return ``name`` if it is a valid voice name. Raises ``VoiceError``."""
    if not _NAME.fullmatch(name):
        raise VoiceError(
            f"{name!r} is no name for a voice: 1 to 64 of A-Z a-z 0-9 _ . -, "
            "beginning with a letter or digit"
        )
    return name


def checked_tokens(tokens: I64, what: str) -> I64:
    """Return ``tokens`` if all are speech tokens of the model. Raises ``VoiceError``."""
    if len(tokens) and not (tokens.min() >= 0 and tokens.max() < _SIZES.vocabulary):
        raise VoiceError(f"{what}: not all are from 0 to {_SIZES.vocabulary - 1}")
    return tokens


def path_of(pack: Path, name: str) -> Path:
    """The path of the pack's voice ``name``, whether it exists or not. Raises ``VoiceError``."""
    return pack / FOLDER / f"{checked_name(name)}{SUFFIX}"


def aligned(voice: Voice, first_tokens: int, block: int = 25) -> Voice:
    """``voice`` with its flow's prompt cut so that the first block needs ``first_tokens`` more.

    The flow renders blocks of ``block`` tokens, counted from the prompt's start, so the first block
    waits for the tokens that complete the prompt's last one. Tokens are cut from the prompt's
    start, farthest from the speech, and never all of them: a prompt too short to be cut stays. The
    language model's prompt is not cut.

    Raises:
        VoiceError: ``first_tokens`` is not between 1 and ``block``.
    """
    if not 1 <= first_tokens <= block:
        raise VoiceError(f"first_tokens is {first_tokens}, not between 1 and {block}")
    cut = (len(voice.flow_tokens) + first_tokens) % block
    if cut >= len(voice.flow_tokens):
        return voice
    return replace(voice, flow_tokens=voice.flow_tokens[cut:], mel=voice.mel[_FRAMES * cut :])


def mix(a: Voice, b: Voice, weight: float, name: str) -> Voice:
    """A voice between two: ``weight`` 0 is ``a``, 1 is ``b``.

    The flow uses the direction of ``speaker`` alone, so embeddings are interpolated spherically:
    equal steps of ``weight`` are equal steps of angle. Prompts cannot be mixed: the heavier voice's
    is used (at 0.5 that of ``a``). The gain is unset, to be measured again.

    Raises:
        VoiceError: ``weight`` is not in [0, 1], or the voices are exact opposites.
    """
    if not 0.0 <= weight <= 1.0:
        raise VoiceError(f"weight is {weight}, not between 0 and 1")
    u = a.speaker.astype(np.float64) / np.linalg.norm(a.speaker.astype(np.float64))
    v = b.speaker.astype(np.float64) / np.linalg.norm(b.speaker.astype(np.float64))
    angle = float(np.arccos(np.clip(u @ v, -1.0, 1.0)))
    if np.pi - angle < 1e-6:
        raise VoiceError(f"{a.name} and {b.name} are opposites: nothing lies between them")
    if angle < 1e-6:
        between = (1.0 - weight) * u + weight * v
    else:
        between = np.sin((1.0 - weight) * angle) * u + np.sin(weight * angle) * v
    unit = between / np.linalg.norm(between)
    heavier = b if weight > 0.5 else a
    return replace(heavier, name=name, speaker=unit.astype(np.float32), gain=None)
