"""A request made ready for one model: how it is spoken, and the chain its audio goes through.

The fleet and the in-process adapter come together here: what follows is the same for both.
"""

from collections.abc import Sequence
from functools import partial

import msgspec
from anyio import to_thread

from voicefleet.schemas.fields import FieldError, Fields, excerpt
from voicefleet.schemas.request import InvalidRequest, Request
from voicefleet.worker.audio.chain import AudioChain
from voicefleet.worker.audio.resume import ResumePoint, resume_point
from voicefleet.worker.engines.protocol import CannotSpeakError, EngineInfo, TurnSpec
from voicefleet.worker.models.loaded_model import LoadedModel
from voicefleet.worker.synthesis.turn import Turn
from voicefleet.worker.text.feed import TextFeed


class PreparedTurn(msgspec.Struct, frozen=True, kw_only=True):
    """One turn, ready to be spoken once. Made by ``prepare``."""

    loaded_model: LoadedModel
    spec: TurnSpec
    chain: AudioChain
    first_segment: int
    points: Sequence[ResumePoint]

    async def speak(self, turn: Turn, feed: TextFeed) -> bool:
        """Speak what the feed brings; returns and raises as ``Turn.run``."""
        segments = feed.segments(self.first_segment)
        engine, chain = self.loaded_model.engine, self.chain
        return await turn.run(engine, self.spec, segments, chain, feed.text_of, self.points)


async def prepare(
    request: Request,
    loaded_model: LoadedModel,
    ceiling_dbtp: float,
    *,
    points: Sequence[ResumePoint] = (),
    first_frame: int = 1,
) -> PreparedTurn:
    """Make a request ready to be spoken, from frame ``first_frame`` on.

    Args:
        request: How to speak; its text comes with the feed.
        loaded_model: Held until the turn has been spoken.
        ceiling_dbtp: No true peak above this, in dBTP.
        points: Where the turn can be taken up, as far as an earlier owner noted.
        first_frame: Frames before it are left out.

    Raises:
        CannotSpeakError: The request names a voice or mode that the model does not have.
        EngineError: The loudness of its voice could not be measured.
    """
    info = loaded_model.info
    spec = turn_spec(request, info)
    gain = await loaded_model.gain(spec.voice)
    start = resume_point(points, first_frame, info.native_rate)
    make = partial(
        AudioChain,
        info.native_rate,
        request.sample_rate,
        gain=gain,
        ceiling_dbtp=ceiling_dbtp,
        start=start,
        first_frame=first_frame,
    )
    return PreparedTurn(
        loaded_model=loaded_model,
        spec=spec,
        # Far into a long turn it takes up to 0.1 s to bring the filters to where they were.
        chain=make() if start is None else await to_thread.run_sync(make),
        first_segment=0 if start is None else start.segment,
        points=points,
    )


def turn_spec(request: Request, info: EngineInfo) -> TurnSpec:
    """How to speak the request with this engine.

    Raises:
        CannotSpeakError: The request names a voice, mode or style that the model does not have.
    """
    voice = request.voice or info.default_voice
    if voice not in info.voices:
        names = ", ".join(info.voices)
        raise CannotSpeakError(f"voice: {excerpt(voice)} is not one of {names}")
    if request.mode is not None and request.mode not in info.modes:
        names = ", ".join(info.modes) or "none: this model has no modes"
        raise CannotSpeakError(f"mode: {excerpt(request.mode)} is not one of {names}")
    if request.instruct is not None and "instruct" not in info.modes:
        raise CannotSpeakError("instruct: this model takes no style")
    return TurnSpec(
        voice=voice,
        seed=request.seed_or_derived,
        speed=request.speed,
        mode=request.mode,
        instruct=request.instruct,
        streamed=request.stream,
    )


def read_request(entry: str, fields: Fields, info: EngineInfo | None) -> Request:
    """Read a request; see whether its model can speak it, where that is known.

    Raises:
        InvalidRequest: It is not what the protocol allows, or not what the model offers.
    """
    request = Request.decode(entry, fields)
    if info is not None:
        try:
            turn_spec(request, info)
        except CannotSpeakError as error:
            field, _, problem = str(error).partition(": ")
            raise InvalidRequest(
                FieldError(field, problem), request.session, request.name
            ) from None
    return request
