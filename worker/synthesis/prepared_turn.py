"""Prepare a request for one loaded model: which voice, which audio chain, where to begin.

Fleet and in-process adapter share all code from here on.
"""

from collections.abc import Sequence
from functools import partial

import msgspec
from anyio import to_thread

from voicefleet.schemas.fields import FieldError, Fields, excerpt
from voicefleet.schemas.request import InvalidRequest, Request
from voicefleet.worker.audio.chain import AudioChain
from voicefleet.worker.audio.resume import ResumePoint, resume_point
from voicefleet.worker.engines.protocol import CannotSpeakError, Engine, EngineInfo, TurnSpec
from voicefleet.worker.models.loaded_model import LoadedModel


class PreparedTurn(msgspec.Struct, frozen=True, kw_only=True):
    """What ``Turn.run`` needs beside the text. Made by ``prepare``, used once.

    ``first_segment`` is the index of the first segment to speak, the one at which ``chain`` starts.
    ``points`` are the resume points that an earlier owner of the turn noted.
    """

    engine: Engine
    spec: TurnSpec
    chain: AudioChain
    first_segment: int
    points: Sequence[ResumePoint] = ()


async def prepare(
    request: Request,
    loaded_model: LoadedModel,
    ceiling_dbtp: float,
    *,
    points: Sequence[ResumePoint] = (),
    first_frame: int = 1,
) -> PreparedTurn:
    """Prepare a request to be spoken from frame ``first_frame`` on.

    Args:
        request: How to speak. Its text is not read: the turn's feed brings it.
        loaded_model: The caller holds it until the turn has been spoken.
        ceiling_dbtp: The limiter's true-peak ceiling in dBTP.
        points: Resume points that an earlier owner of the turn noted.
        first_frame: The first frame to make, counted from 1.

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
        engine=loaded_model.engine,
        spec=spec,
        # Restoring the filters takes up to 0.1 s far into a long turn: not on the event loop.
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
    """Decode a request, and check it against its model where ``info`` is known.

    Raises:
        InvalidRequest: It breaks the protocol, or asks for what the model does not offer.
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
