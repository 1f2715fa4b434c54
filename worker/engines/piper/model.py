"""A Piper voice in memory: text -> phoneme ids -> latent frames -> samples.

Everything here blocks and is called from threads. Needs the ``piper`` extra.
"""

import json
import math
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from piper import PiperVoice
from piper.config import PhonemeType
from piper.config import PiperConfig as VoiceConfig

from voicefleet.worker.engines.piper import graph
from voicefleet.worker.engines.piper.graph import Stage
from voicefleet.worker.engines.piper.inference_pool import Interrupt
from voicefleet.worker.engines.protocol import Samples

RATES: Final = (8_000, 192_000)
"""Sample rates that are taken, in Hz."""

MOST_SPEAKERS: Final = 10_000

# Piper's phonemisers are one per process and keep the language of the last call.
_PHONEMISER = threading.Lock()


class _Session(Protocol):
    """The part of ``onnxruntime.InferenceSession`` that is used here; it carries no types."""

    def run(
        self, outputs: Sequence[str], feed: Mapping[str, NDArray[Any]], options: Interrupt
    ) -> list[NDArray[Any]]: ...


class _Runner:
    """A stage of the graph, ready to run. Keeps the names and lets go of the model's bytes."""

    def __init__(self, stage: Stage) -> None:
        self.inputs = stage.inputs
        self._outputs = stage.outputs
        self._session = _session(stage.model)

    def run(self, feed: Mapping[str, NDArray[Any]], options: Interrupt) -> dict[str, NDArray[Any]]:
        """The stage's outputs by name; ``feed`` may hold more than its inputs."""
        inputs = {name: feed[name] for name in self.inputs}
        results = self._session.run(self._outputs, inputs, options)
        return dict(zip(self._outputs, results, strict=True))


@dataclass(frozen=True)
class Utterance:
    """One sentence between the stages: all that the vocoder needs to know about it.

    ``latents`` is float32 ``[1, channels, frames]``; ``conditions`` are the vocoder's other inputs,
    the same for every frame (what it takes of the speaker).
    """

    latents: NDArray[np.float32]
    conditions: Mapping[str, NDArray[Any]]

    @property
    def frames(self) -> int:
        """How many latent frames there are."""
        return self.latents.shape[2]


class PiperModel:
    """One voice, loaded. Safe to use from several threads at once.

    Args:
        model: The ``.onnx`` file.
        config: Its ``.onnx.json``.

    Raises:
        UnknownGraphError: The graph is none of Piper's.
        ValueError: The configuration is of other types than Piper's, or asks for too much.
        Exception: Whatever onnx and ONNX Runtime raise for files that are broken.
    """

    def __init__(self, model: Path, config: Path) -> None:
        raw: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
        self._config = _checked(VoiceConfig.from_dict(raw))
        language = raw.get("language", {}).get("code")
        self.language: str | None = language if isinstance(language, str) else None
        # Weights in other files are nothing that Piper exports, and may be any file of the machine.
        stages = graph.split(onnx.load(str(model), load_external_data=False))
        self.hop = stages.hop
        self.context = stages.context
        self._mean = stages.mean
        self._latent = stages.latent
        self._prior = _Runner(stages.prior)
        self._flow = _Runner(stages.flow)
        self._decoder = _Runner(stages.decoder)
        # The phonemisers are methods of a voice; the session it would synthesise with is not used.
        self._voice = PiperVoice(session=cast("Any", None), config=self._config)

    @property
    def rate(self) -> int:
        """Sample rate of the model's audio in Hz."""
        return self._config.sample_rate

    @property
    def speakers(self) -> dict[str, int]:
        """Speaker name -> id, in order of the ids; empty for a model of one speaker."""
        if self._config.num_speakers <= 1:
            return {}
        names = sorted(self._config.speaker_id_map.items(), key=lambda item: item[1])
        return dict(names) or {str(one): one for one in range(self._config.num_speakers)}

    @property
    def default_speaker(self) -> int:
        """Id of the speaker to use where none is asked for."""
        return self._config.default_speaker_id

    def phonemise(self, text: str) -> list[list[int]]:
        """Phoneme ids of each sentence in ``text``; empty for text with nothing to pronounce."""
        if not any(unicodedata.category(character)[0] in "LNS" for character in text):
            # espeak would name the marks ("exclamation") where there is nothing else.
            return []
        with _PHONEMISER:
            sentences = self._voice.phonemize(text.replace("\0", " "))
        if self._config.phoneme_type != PhonemeType.PINYIN:
            # Piper would log each phoneme it has no id for, and that is a part of somebody's text.
            known = self._config.phoneme_id_map
            sentences = [[phoneme for phoneme in one if phoneme in known] for one in sentences]
        return [self._voice.phonemes_to_ids(one) for one in sentences if _is_spoken(one)]

    def compose(
        self,
        ids: Sequence[int],
        *,
        speaker: int,
        speed: float,
        rng: np.random.Generator,
        run: Interrupt,
    ) -> Utterance:
        """Decide how one sentence is said: how long each phoneme lasts, and how it sounds.

        All that is random in it is drawn from ``rng``.
        """
        config = self._config
        scales = (config.noise_scale, config.length_scale / speed, config.noise_w_scale)
        feed: dict[str, NDArray[Any]] = {
            "input": np.array([ids], dtype=np.int64),
            "input_lengths": np.array([len(ids)], dtype=np.int64),
            "scales": np.array(scales, dtype=np.float32),
            "sid": np.array([speaker], dtype=np.int64),
            graph.DURATION_NOISE: _normal(rng, (1, 2, len(ids))),
        }
        feed |= self._prior.run(feed, run)
        feed[graph.FRAME_NOISE] = _normal(rng, feed[self._mean].shape)
        feed |= self._flow.run(feed, run)
        latents = feed.pop(self._latent)
        conditions = {name: feed[name] for name in self._decoder.inputs if name in feed}
        return Utterance(latents, conditions)

    def decode(self, utterance: Utterance, start: int, stop: int, run: Interrupt) -> Samples:
        """The samples of latent frames ``start`` to ``stop``: float32 ``[(stop - start) * hop]``.

        Windows that adjoin join without a seam: each is computed with its context around it.
        """
        first = max(0, start - self.context)
        window = utterance.latents[:, :, first : stop + self.context]
        feed = {**utterance.conditions, self._latent: window}
        (audio,) = self._decoder.run(feed, run).values()
        offset = (start - first) * self.hop
        return audio.reshape(-1)[offset : offset + (stop - start) * self.hop]


def new_run() -> Interrupt:
    """Options of one run, which end it when their ``terminate`` is set."""
    options = cast("Any", onnxruntime.RunOptions())
    # A run that was ended on purpose is no news.
    options.log_severity_level = 4
    return cast("Interrupt", options)


def _checked(config: VoiceConfig) -> VoiceConfig:
    """``config``, which Piper takes from its file as it is, if its numbers are numbers."""
    numbers = (config.noise_scale, config.length_scale, config.noise_w_scale)
    names = cast("Mapping[Any, Any]", config.speaker_id_map)
    counts = (config.sample_rate, config.num_speakers, config.default_speaker_id, *names.values())
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise ValueError(f"noise and length scales are {numbers!r:.80}")
    if not all(type(count) is int for count in counts):
        raise ValueError("a rate, number or id of speakers is no integer")
    if not RATES[0] <= config.sample_rate <= RATES[1]:
        raise ValueError(f"sample_rate is not {RATES[0]} to {RATES[1]} Hz")
    if not (config.num_speakers <= MOST_SPEAKERS and len(names) <= MOST_SPEAKERS):
        raise ValueError(f"more than {MOST_SPEAKERS} speakers")
    if not all(isinstance(name, str) for name in names):
        raise ValueError("a speaker's name is no text")
    return config


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return rng.standard_normal(shape, dtype=np.float32)


def _is_spoken(phonemes: Sequence[str]) -> bool:
    """Whether there is anything but punctuation and pauses."""
    return any(character.isalnum() for phoneme in phonemes for character in phoneme)


def _session(model: bytes) -> _Session:
    options = cast("Any", onnxruntime.SessionOptions())
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # No two runs are of one length: a plan of the memory for each length would only pile up.
    options.enable_mem_pattern = False
    return cast(
        "_Session",
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]),
    )
