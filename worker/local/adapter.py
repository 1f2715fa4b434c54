"""A voice without Redis: the fleet's own code path inside one process.

    import asyncio
    import wave
    from collections.abc import AsyncIterator

    from voicefleet.worker.local.adapter import VoiceAdapter
    from voicefleet.worker.config.sections import Config

    async def words() -> AsyncIterator[str]:
        yield "Text may arrive in pieces, "
        yield "while it is being spoken."

    async def main() -> None:
        async with VoiceAdapter(Config(), "tone-test") as voice:
            with wave.open("spoken.wav", "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(48000)
                async for frame in voice.synthesize_stream(words()):
                    file.writeframes(frame)

    asyncio.run(main())

Text feed, turn, engine and audio chain are those of a worker. Only the output differs: frames go
into a queue with one consumer instead of the outbox.
"""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import AsyncExitStack
from typing import Self

import anyio
import msgspec
from anyio import CancelScope
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from voicefleet.schemas.control import Level
from voicefleet.schemas.request import Request, TextPiece
from voicefleet.worker.config.sections import Config
from voicefleet.worker.engines import registry
from voicefleet.worker.engines.registry import EngineFactory, UnknownModelError
from voicefleet.worker.models.loaded_model import LoadedModel
from voicefleet.worker.models.pool import ModelPool
from voicefleet.worker.publish.frame_queue import FrameQueue
from voicefleet.worker.synthesis.prepared_turn import prepare
from voicefleet.worker.synthesis.turn import Turn, TurnState
from voicefleet.worker.text.feed import TextFeed
from voicefleet.worker.voicepacks import voicepack


class AdapterError(RuntimeError):
    """The adapter was asked for something that it cannot do in its state; the message says why."""


class VoiceAdapter:
    """One model in this process, speaking one turn at a time: ``async with VoiceAdapter(...)``.

    The model is loaded when it is first needed. All calls belong to the event loop of the block.

    Args:
        config: The sections ``model_manager``, ``engine`` and ``audio`` of a worker's, and from
            ``worker`` ``text_settle_ms``, ``text_timeout_s`` and ``max_stream_chars``.
        model_id: The model; else ``model_manager.default_model_id``, else the first of
            ``worker.models``.
        build: Makes the engine of a voicepack.

    Raises:
        UnknownModelError: No model is named, or it has no voicepack.
        VoicepackError: The voicepacks cannot be read.
    """

    def __init__(
        self,
        config: Config,
        model_id: str | None = None,
        *,
        build: EngineFactory = registry.build,
    ) -> None:
        manager = config.model_manager
        named = (model_id, manager.default_model_id, *config.worker.models)
        self.model_id = next((name for name in named if name), "")
        packs = voicepack.discover(voicepack.default_directory(manager.voicepacks_dir))
        if not self.model_id:
            raise UnknownModelError(f"no model is named; the voicepacks are {', '.join(packs)}")
        self._config = config
        # One model, loaded and unloaded by the adapter alone.
        manager = msgspec.structs.replace(
            manager, default_model_id="", preload_model_ids=(), ttl_ms=0
        )
        self._pool = ModelPool(
            manager, config.engine, config.audio, packs, [self.model_id], build=build
        )
        self._tasks: TaskGroup | None = None
        self._stack = AsyncExitStack()
        self._control = Level.RESUME
        self._speech: _Speech | None = None

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise AdapterError("the adapter is open already")
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            await tasks.start(self._pool.run)
            self._tasks, self._stack = tasks, stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        tasks, self._tasks = self._tasks, None
        assert tasks is not None
        if self._speech is not None:
            await self._end(self._speech, AdapterError("the adapter was closed"))
        tasks.cancel_scope.cancel()
        # Not told of the block's exception, the task group does not wrap it either.
        await self._stack.aclose()

    async def load_model(self) -> None:
        """Bring the model into memory and, where configured, warm it up.

        Raises:
            EngineLoadError: It could not be loaded. A later call tries again.
        """
        self._opened()
        async with self._pool.hold(self.model_id):
            pass

    async def warm_up(self) -> None:
        """Speak ``model_manager.warmup_text`` to nobody, so that the first turn is fast.

        Raises:
            EngineError: The model could not be loaded or could not speak.
        """
        self._opened()
        async with self._pool.hold(self.model_id) as loaded_model:
            await loaded_model.engine.warm_up(self._config.model_manager.warmup_text)

    async def unload_model(self) -> None:
        """Give the model's memory back; the next turn loads it again.

        Raises:
            AdapterError: It is speaking.
        """
        self._opened()
        if self._speech is not None:
            raise AdapterError("the model is speaking: end the turn before unloading it")
        await self._pool.unload_all()

    def get_state(self) -> TurnState:
        """What the turn is doing; between turns ``IDLE``, or what ``control`` left behind."""
        if self._control is Level.STOP:
            return TurnState.STOPPED
        if self._control is Level.PAUSE:
            return TurnState.PAUSED
        return TurnState.IDLE if self._speech is None else self._speech.turn.state

    def control(self, command: str) -> None:
        """``PAUSE``, ``RESUME`` or ``STOP`` the turn, or the next one; upper or lower case.

        No frame leaves after ``PAUSE``; ``RESUME`` goes on with the very next one. ``STOP`` ends
        the turn, the engine's work and the stream, and stays until ``reset``: the other two are
        without effect then.

        Raises:
            ValueError: The command is none of the three.
        """
        try:
            control = Level(command.strip().lower())
        except ValueError:
            allowed = ", ".join(level.name for level in (Level.PAUSE, Level.RESUME, Level.STOP))
            raise ValueError(f"{command[:40]!r} is not one of {allowed}") from None
        if self._control is not Level.STOP:
            self._control = control
            if self._speech is not None:
                self._speech.obey(control)

    async def reset(self) -> None:
        """Back to ``IDLE``: ends the turn that is spoken, and takes back a pause or stop."""
        if self._speech is not None:
            await self._end(self._speech)
        self._control = Level.RESUME

    def synthesize_stream(
        self,
        text_chunks: AsyncIterable[str] | Iterable[str],
        *,
        voice: str | None = None,
        speed: float = 1.0,
        seed: int = 0,
        sample_rate: int = 48000,
        lead_ms: int = 0,
    ) -> AsyncGenerator[bytes]:
        """Speak text while it arrives, in frames of 20 ms: s16le, mono.

        The turn begins with the first frame that is asked for. Text is read as it comes, ahead of
        the speech; where it pauses, a complete sentence is spoken without waiting for more. An
        error of the text or of the engine is raised after the frames that could still be made.
        Closing the generator ends the engine's work; a consumer that may stop early does so with
        ``contextlib.aclosing``.

        Args:
            text_chunks: The text in pieces of any size, or as one string. What waits for its next
                piece must be an async iterable: an iterable that blocks holds the event loop.
            voice: One of the model's voices; its default where ``None``.
            speed: 0.5 to 2.0.
            seed: Same seed, text, voice and model: same samples.
            sample_rate: 8000, 16000, 24000 or 48000 Hz.
            lead_ms: How far frames may run ahead of real time, in ms; 0 gives them out as fast as
                they are made.

        Raises:
            InvalidRequest: An option is out of range (at once).
            TypeError: ``text_chunks`` cannot be iterated (at once).
            AdapterError: Another turn is being spoken, or ``STOP`` was not reset (with the first
                frame, as all that follow).
            CannotSpeakError: The model has no such voice.
            EngineError: It could not be loaded, or could not speak.
            TimeoutError: No text came for ``worker.text_timeout_s``; what came before is spoken.
        """
        request = Request(
            session="adapter",
            request="turn",
            stream=True,
            voice=voice,
            speed=speed,
            seed=seed,
            sample_rate=sample_rate,
            lead_ms=lead_ms,
        )
        request.validate()
        return self._stream(request, _pieces(text_chunks))

    async def _stream(self, request: Request, text: AsyncIterable[str]) -> AsyncGenerator[bytes]:
        # No task group and no cancel scope is open across a yield: the work is done by a task of
        # the adapter's own, which this generator starts, hears and ends.
        tasks = self._opened()
        if self._speech is not None:
            raise AdapterError("the adapter speaks one turn at a time, and one is being spoken")
        if self._control is Level.STOP:
            raise AdapterError("the adapter is stopped: call reset() before the next turn")
        speech = self._speech = _Speech(request.lead_ms or 0)
        speech.obey(self._control)
        tasks.start_soon(self._speak, speech, request, text)
        try:
            while (frame := await speech.queue.get()) is not None:
                yield frame.pcm
            speech.turn.finished()
        finally:
            await self._end(speech)

    async def _end(self, speech: "_Speech", error: Exception | None = None) -> None:
        """End a turn, whatever it is doing; returns when the engine has let go of it."""
        speech.stop(error)
        with CancelScope(shield=True):
            await speech.ended.wait()
        if self._speech is speech:
            self._speech = None

    async def _speak(self, speech: "_Speech", request: Request, text: AsyncIterable[str]) -> None:
        try:
            with speech.scope:
                async with self._pool.hold(self.model_id) as loaded_model:
                    await self._speak_with(loaded_model, speech.turn, request, text)
            speech.queue.close()
        except Exception as error:
            speech.queue.close(error)
        finally:
            speech.queue.close(AdapterError("the adapter was closed"))
            speech.ended.set()

    async def _speak_with(
        self, loaded_model: LoadedModel, turn: Turn, request: Request, text: AsyncIterable[str]
    ) -> None:
        prepared = await prepare(request, loaded_model, self._config.audio.true_peak_dbtp)
        limits = loaded_model.info.limits_for(streamed=request.stream)
        worker = self._config.worker
        feed = TextFeed(
            *(limits, worker.text_timeout_s, worker.max_stream_chars, worker.text_settle_ms / 1000)
        )
        errors: list[Exception] = []

        async def read() -> None:
            try:
                async for piece in text:
                    feed.push(TextPiece(text=piece))
                    await checkpoint()  # text without end must not hold the loop
                feed.push(TextPiece(end=True))
            except Exception as error:
                errors.append(error)
                feed.fail(str(error))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            try:
                await turn.run(prepared, feed)
            except Exception as error:
                errors.append(error)
            tasks.cancel_scope.cancel()
        if errors:
            raise errors[0]
        if feed.failure is not None:
            raise TimeoutError(f"{feed.failure}: the text stopped arriving before its end")

    def _opened(self) -> TaskGroup:
        if self._tasks is None:
            raise AdapterError("the adapter is not open: async with VoiceAdapter(...)")
        return self._tasks


def _pieces(text: AsyncIterable[str] | Iterable[str]) -> AsyncIterable[str]:
    if isinstance(text, AsyncIterable):
        return text
    pieces = iter((text,) if isinstance(text, str) else text)

    async def each() -> AsyncIterator[str]:
        for piece in pieces:
            yield piece

    return each()


class _Speech:
    """One turn of an adapter: the turn, its way out, and the scope of the task that speaks it."""

    def __init__(self, lead_ms: int) -> None:
        self.queue = FrameQueue(lead_ms)
        self.turn = Turn(self.queue)
        self.scope = CancelScope()
        self.ended = anyio.Event()

    def obey(self, control: Level) -> None:
        match control:
            case Level.PAUSE:
                self.turn.pause()
            case Level.RESUME:
                self.turn.resume()
            case Level.STOP:
                self.stop()

    def stop(self, error: Exception | None = None) -> None:
        """Speak no further; the consumer gets no other frame, but ``error`` where there is one."""
        self.turn.stop()
        self.queue.end_now(error)
        self.scope.cancel()
