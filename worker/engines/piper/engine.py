"""Piper voices (VITS) on the CPU, through ONNX Runtime. Needs the ``piper`` extra.

A sentence is synthesised in steps: first its latent frames, then its samples in windows that grow,
so that audio comes early. Turns share a few threads, one step at a time, in the order in which
their listeners run out of audio. Cancellation ends a running step.
"""

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

import anyio
import numpy as np
from anyio import to_thread

from voicefleet.installation import install
from voicefleet.worker.engines import memory
from voicefleet.worker.engines.piper.edges import SentenceEdges, pause_after
from voicefleet.worker.engines.piper.family import PiperConfig
from voicefleet.worker.engines.piper.inference_pool import InferencePool, Interrupt
from voicefleet.worker.engines.protocol import (
    CannotSpeakError,
    Chunk,
    EngineError,
    EngineInfo,
    EngineLoadError,
    Mark,
    Samples,
    Segment,
    SegmentLimits,
    TurnSpec,
)
from voicefleet.worker.voicepacks.voicepack import Voicepack, VoicepackError

if TYPE_CHECKING:
    from voicefleet.worker.engines.piper.model import PiperModel

T = TypeVar("T")

FIRST_WINDOW_S = 0.56
LARGEST_WINDOW_S = 4.48
WINDOW_GROWTH = 4
"""The first window is small, to come early; later ones are larger, as each border costs 0.28 s."""

CHUNK_S = 0.2
"""The longest chunk that ``speak`` yields, in seconds."""


class PiperEngine:
    """One Piper voice. ``pack.source.files`` names its ``model`` (.onnx) and ``config`` (.json).

    ``speed`` is the inverse of Piper's length scale. The model rounds each phoneme up to whole
    frames of some 12 ms, so that twice the speed takes about 0.6 of the time.
    """

    def __init__(self, pack: Voicepack, config: PiperConfig) -> None:
        self._pack = pack
        self._config = config
        self._threads = config.threads or _cores()
        self._pool = InferencePool(self._threads)
        self._model: PiperModel | None = None
        self._info: EngineInfo | None = None

    @property
    def info(self) -> EngineInfo:
        """What the voice can do. Raises ``EngineError`` while it is not loaded."""
        if self._info is None:
            raise EngineError(f"{self._pack.model_id} is not loaded")
        return self._info

    async def load(self) -> None:
        """Load the voice: about a second. Raises ``EngineLoadError``."""
        try:
            self._model = await to_thread.run_sync(_load, self._pack)
            self._info = self._describe(self._model)
        except BaseException:
            await self.unload()
            raise

    async def warm_up(self, text: str) -> None:
        """Speak ``text`` once and discard the audio."""
        spec = TurnSpec(voice=self.info.default_voice, seed=0)
        segment = Segment(0, text, 0, len(text))
        async with aclosing(self._segment(spec, segment, _Listener())) as pieces:
            async for _ in pieces:
                pass

    async def speak(
        self, spec: TurnSpec, segments: AsyncIterator[Segment]
    ) -> AsyncGenerator[Chunk]:
        """Speak the segments. See ``Engine.speak``."""
        self._refuse(spec)
        rate = self.info.native_rate
        chunk = round(CHUNK_S * rate)
        listener = _Listener()
        async for segment in segments:
            listener.listens()
            marks = (Mark(0, segment),)
            async with aclosing(self._segment(spec, segment, listener)) as pieces:
                async for samples in pieces:
                    listener.gets(len(samples) / rate)
                    for start in range(0, len(samples), chunk):
                        yield Chunk(samples[start : start + chunk], marks)
                        marks = ()
                    listener.listens()

    async def lost(self) -> str:
        """Never returns."""
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def unload(self) -> None:
        """Stop running steps and free the memory."""
        self._model = self._info = None
        await self._pool.stop()
        await to_thread.run_sync(memory.release)

    def _describe(self, model: "PiperModel") -> EngineInfo:
        pack = self._pack
        voices = tuple(model.speakers) or (pack.default_voice or "default",)
        default = pack.default_voice or voices[_position(model)]
        if default not in voices:
            raise EngineLoadError(
                f"{pack.model_id}: default_voice {default!r} is not one of {', '.join(voices)}"
            )
        return EngineInfo(
            native_rate=model.rate,
            slots=self._config.slots,
            voices=voices,
            default_voice=default,
            languages=(model.language.replace("_", "-"),) if model.language else pack.languages,
            capabilities=pack.capabilities,
            limits=SegmentLimits(self._config.first_chars, self._config.max_chars),
            memory_mb=pack.memory_mb,
        )

    def _refuse(self, spec: TurnSpec) -> None:
        """Raise ``CannotSpeakError`` for a request that no Piper voice can fulfil."""
        if spec.voice not in self.info.voices:
            raise CannotSpeakError(f"unknown voice; the voices are {', '.join(self.info.voices)}")
        if spec.mode is not None:
            raise CannotSpeakError(f"{self._pack.model_id} has no modes")
        if spec.instruct is not None:
            raise CannotSpeakError(f"{self._pack.model_id} takes no instructions")

    async def _segment(
        self, spec: TurnSpec, segment: Segment, listener: "_Listener"
    ) -> AsyncGenerator[Samples]:
        """The segment's audio in windows, then its pause; only the pause if it has no phonemes."""
        rate = self.info.native_rate
        pause_s = pause_after(segment.text) / spec.speed
        sentences = await self._step(
            lambda model, _: model.phonemise(segment.text), listener.needs_at
        )
        if not sentences:
            yield np.zeros(round(pause_s * rate), dtype=np.float32)
        for number, ids in enumerate(sentences):
            last = number == len(sentences) - 1
            edges = SentenceEdges(rate, pause_s if last else pause_after(".") / spec.speed)
            seed = (spec.seed & (2**64 - 1), segment.index, number)
            async with aclosing(self._sentence(spec, ids, seed, edges, listener)) as windows:
                async for samples in windows:
                    yield samples

    async def _sentence(
        self,
        spec: TurnSpec,
        ids: list[int],
        seed: tuple[int, int, int],
        edges: SentenceEdges,
        listener: "_Listener",
    ) -> AsyncGenerator[Samples]:
        rng = np.random.Generator(np.random.PCG64(seed))
        utterance = await self._step(
            lambda model, run: model.compose(
                ids,
                speaker=model.speakers.get(spec.voice, 0),
                speed=spec.speed,
                rng=rng,
                run=run,
            ),
            listener.needs_at,
        )
        for start, stop in self._windows(utterance.frames):
            samples = await self._step(
                lambda model, run, start=start, stop=stop: model.decode(
                    utterance, start, stop, run
                ),
                listener.needs_at,
            )
            yield edges.shape(samples, last=stop == utterance.frames)

    def _windows(self, frames: int) -> Iterator[tuple[int, int]]:
        """Cut ``frames`` into growing windows; a remainder of less than a window joins the last."""
        model = self._loaded()
        size = max(1, round(FIRST_WINDOW_S * model.rate / model.hop))
        largest = round(LARGEST_WINDOW_S * model.rate / model.hop)
        start = 0
        while start < frames:
            stop = start + size if frames - start > 2 * size else frames
            yield start, stop
            start, size = stop, min(WINDOW_GROWTH * size, largest)

    async def _step(self, work: "Callable[[PiperModel, Interrupt], T]", needed_at: float) -> T:
        """Run one step of a turn in a thread. Errors never contain the text."""
        from voicefleet.worker.engines.piper.model import new_run  # noqa: PLC0415  (the extra)

        model = self._loaded()
        run = new_run()
        try:
            return await self._pool.run(lambda: work(model, run), run, needed_at)
        except Exception as error:
            kind = type(error).__name__
        self._loaded()
        raise EngineError(f"{self._pack.model_id}: inference failed with {kind}")

    def _loaded(self) -> "PiperModel":
        if self._model is None:
            raise EngineError(f"{self._pack.model_id} is not loaded")
        return self._model


class _Listener:
    """When a turn's listener runs out of audio, if it plays what it gets at once and in real time.

    ``needs_at`` is in seconds of ``anyio.current_time()``, and the turn's start until it has audio.
    Time in which the turn waited for its text or its reader does not count.
    """

    def __init__(self) -> None:
        self.needs_at = anyio.current_time()

    def listens(self) -> None:
        """The listener is ready for more audio from now on."""
        self.needs_at = max(self.needs_at, anyio.current_time())

    def gets(self, seconds: float) -> None:
        """The listener gets ``seconds`` of audio."""
        self.listens()
        self.needs_at += seconds


def _cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _position(model: "PiperModel") -> int:
    """The index of the default speaker among the voices."""
    ids = list(model.speakers.values())
    return ids.index(model.default_speaker) if model.default_speaker in ids else 0


def _load(pack: Voicepack) -> "PiperModel":
    try:
        from voicefleet.worker.engines.piper.model import PiperModel  # noqa: PLC0415  (the extra)
    except ImportError as error:
        raise EngineLoadError(
            f"{pack.model_id} needs the piper extra: {install('piper')} "
            f"({error.name or error} is missing)"
        ) from None
    try:
        return PiperModel(pack.file("model"), pack.file("config"))
    except VoicepackError as error:
        raise EngineLoadError(str(error)) from None
    except Exception as error:
        raise EngineLoadError(
            f"{pack.model_id} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    finally:
        memory.release()
