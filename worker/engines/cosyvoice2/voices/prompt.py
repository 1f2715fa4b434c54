"""Makes the model's inputs of a reference recording.

Two published networks run in ONNX Runtime: ``campplus.onnx`` computes the speaker embedding,
``speech_tokenizer_v2.onnx`` the speech tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.voices import features
from voicefleet.worker.engines.cosyvoice2.voices.recording import (
    LONGEST_S,
    RecordingError,
    resample,
)
from voicefleet.worker.engines.cosyvoice2.voices.voice import checked_tokens

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

SHORTEST_S = 3.0
"""A shorter recording says too little of a voice. ``recording.LONGEST_S`` is the other limit."""

RATES = (8_000, 192_000)
"""The lowest and the highest sample rate accepted, in Hz."""

_SILENT_PEAK = 1e-3
_LOUDEST_PEAK = 0.8
_TRIM_DB = 60.0
_TRIM_S = 0.01
_MARGIN_S = 0.05
_CLOSING_S = 0.2


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class PromptFeatures:
    """The model's inputs made of a recording.

    ``speech_tokens`` int64 ``[P]`` (25 per second) and ``mel`` f32 ``[2 P, 80]`` (50 frames per
    second) cover the same time. ``speaker`` f32 ``[192]`` is not normalised. ``seconds`` is how
    much of the recording was used, without the silence added after it.
    """

    speech_tokens: I64
    mel: F32
    speaker: F32
    seconds: float


class _Session(Protocol):
    def get_inputs(self) -> Sequence[Any]: ...

    def run(self, outputs: None, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]: ...


class PromptReader:
    """Makes prompt features. Loads both networks once, on the GPU if ``cuda``.

    Raises:
        CosyVoiceInitializationError: ONNX Runtime is not installed or has no CUDA, or a file
            cannot be loaded.
    """

    def __init__(
        self, speaker_encoder: Path, speech_tokenizer: Path, *, cuda: bool = False, threads: int = 1
    ) -> None:
        provider = "CUDAExecutionProvider" if cuda else "CPUExecutionProvider"
        self._speaker_encoder = _load(speaker_encoder, 1, provider, threads)
        self._speech_tokenizer = _load(speech_tokenizer, 2, provider, threads)

    def read(self, samples: F32, rate: int, *, condition: bool = True) -> PromptFeatures:
        """Compute the features of samples, float32 ``[n]`` or ``[n, channels]``, at ``rate`` Hz.

        With ``condition``, silence is trimmed and high peaks are lowered (see ``conditioned``), and
        0.2 s of silence are added (less if the recording would exceed 30 s), so that the model
        starts to speak after a pause. Without, samples are used as upstream's library does.

        Raises:
            RecordingError: The recording is too short, too long, silent or not finite.
        """
        mono = _mono(samples, rate)
        if condition:
            mono = conditioned(mono, rate)
        seconds = len(mono) / rate
        if not SHORTEST_S <= seconds <= LONGEST_S:
            without = " without the silence around it" if condition else ""
            raise RecordingError(
                f"recording: {seconds:.1f} s long{without}, "
                f"not {SHORTEST_S:.0f} to {LONGEST_S:.0f} s"
            )
        if condition:
            mono = _closed(mono, rate)
        low = resample(mono, rate, features.WHISPER_RATE)
        mel = features.speech_mel(resample(mono, rate, features.MEL_RATE))
        tokens = self._tokens(low)
        # Both lengths are rounded: the last token may lack its frames, or the last frames a token.
        count = min(len(mel) // 2, len(tokens))
        return PromptFeatures(
            speech_tokens=tokens[:count],
            mel=mel[: 2 * count],
            speaker=self._speaker(low),
            seconds=seconds,
        )

    def _tokens(self, samples: F32) -> I64:
        log_mel = features.whisper_log_mel(samples)[None]
        feeds = (log_mel, np.array([log_mel.shape[2]], dtype=np.int32))
        tokens = _run(self._speech_tokenizer, feeds).reshape(-1).astype(np.int64)
        return checked_tokens(tokens, "the speech tokenizer's output")

    def _speaker(self, samples: F32) -> F32:
        fbank = features.kaldi_fbank(samples)[None]
        return _run(self._speaker_encoder, (fbank,)).reshape(-1).astype(np.float32)


def conditioned(mono: F32, rate: int) -> F32:
    """Trim silence at the ends and lower the peak to 0.8, as upstream's web page does.

    Silence is what is 60 dB below the loudest window of 10 ms; 50 ms of it stay at each end.
    """
    window = max(1, round(_TRIM_S * rate))
    padded = np.pad(mono, (0, -len(mono) % window)).reshape(-1, window)
    powers = np.square(padded, dtype=np.float64).mean(axis=1)
    loud = np.flatnonzero(powers > powers.max() * 10 ** (-_TRIM_DB / 10))
    margin = round(_MARGIN_S * rate)
    start = max(0, int(loud[0]) * window - margin)
    kept = mono[start : (int(loud[-1]) + 1) * window + margin]
    peak = float(np.abs(kept).max())
    return kept * np.float32(_LOUDEST_PEAK / peak) if peak > _LOUDEST_PEAK else kept


def _closed(mono: F32, rate: int) -> F32:
    """``mono`` followed by silence."""
    room = max(0, int(LONGEST_S * rate) - len(mono))
    return np.pad(mono, (0, min(room, round(_CLOSING_S * rate))))


def _mono(samples: F32, rate: int) -> F32:
    if not RATES[0] <= rate <= RATES[1]:
        raise RecordingError(f"recording: its rate is {rate} Hz, not {RATES[0]} to {RATES[1]} Hz")
    mono = samples.mean(axis=1, dtype=np.float32) if samples.ndim == 2 else samples
    if not np.isfinite(mono).all():
        raise RecordingError("recording: it holds samples that are no numbers")
    if not mono.size or float(np.abs(mono).max()) < _SILENT_PEAK:
        raise RecordingError("recording: it is silent")
    return mono


def _load(path: Path, inputs: int, provider: str, threads: int) -> _Session:
    try:
        import onnxruntime  # noqa: PLC0415  (the extra)
    except ImportError:
        raise CosyVoiceInitializationError(
            "reading a recording needs the onnxruntime package"
        ) from None
    if provider not in onnxruntime.get_available_providers():
        raise CosyVoiceInitializationError(
            f"this onnxruntime has no {provider}: install onnxruntime-gpu"
        )
    options = cast("Any", onnxruntime.SessionOptions())
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = cast(
            "_Session", onnxruntime.InferenceSession(path, options, providers=[provider])
        )
    except Exception as error:
        raise CosyVoiceInitializationError(
            f"{path} cannot be loaded: {type(error).__name__}: {error}"
        ) from None
    if len(session.get_inputs()) != inputs:
        raise CosyVoiceInitializationError(
            f"{path}: takes {len(session.get_inputs())} inputs, not {inputs}"
        )
    return session


def _run(session: _Session, feeds: Sequence[NDArray[Any]]) -> NDArray[Any]:
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, dict(zip(names, feeds, strict=True)))[0]
