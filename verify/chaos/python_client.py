"""Drives one session through the Python client, as its users do.

Errors that the client raises go into the journal; then the request is sent again under its name, as
the client's documentation advises.
"""

import time
from collections.abc import Mapping
from typing import Final

import anyio
from anyio.abc import TaskGroup

from verify.chaos.journal import Asked, ClientFailed, ControlSet, Heard, Journal, Wrote
from verify.chaos.plan import SessionScript
from verify.chaos.recorder import digest
from verify.chaos.script import Add, Ask, SetControl, Sleep, Step, WaitForEnds, WaitForFrames
from verify.chaos.stream_view import StreamView
from verify.chaos.utterances import Utterance
from voicefleet import (
    Frame,
    Session,
    SpeakOptions,
    StreamedTurn,
    Turn,
    TurnEnded,
    TurnError,
    VoiceFleet,
    VoiceFleetError,
)

READER: Final = "client"
SILENCE_S: Final = 15.0
"""After so long without a frame, a turn that is not paused is sent again."""

_RETRY_S: Final = 0.5


class ClientConversation:
    """Plays a session's script. ``run`` returns when each request has its end."""

    def __init__(
        self,
        script: SessionScript,
        main: str,
        utterances: Mapping[str, Utterance],
        fleet: VoiceFleet,
        journal: Journal,
    ) -> None:
        self._script = script
        self._main = main
        self._utterances = utterances
        self._session: Session = fleet.session(script.session, model=main)
        self._journal = journal
        self._view = StreamView(script.session, journal)
        self._paused = False
        self._value = ""

    async def run(self) -> None:
        """Play all scenes."""
        for scene in self._script.scenes:
            async with anyio.create_task_group() as turns:
                for step in scene.steps:
                    await self._make(step, turns)

    async def _make(self, step: Step, turns: TaskGroup) -> None:
        match step:
            case Add(asks):
                for ask in asks:
                    await turns.start(self._turn, ask)
            case WaitForFrames(request, frames):
                await self._view.heard(request, frames)
            case Sleep(seconds):
                await anyio.sleep(seconds)
            case SetControl(value):
                await self._control(value)
            case WaitForEnds(requests):
                await self._view.ended(requests)
            case _:
                raise AssertionError(f"the Python client does not play {step}")

    async def _control(self, value: str) -> None:
        control = value.lower() or "resume"
        acts = {
            "pause": self._session.pause,
            "resume": self._session.resume,
            "stop": self._session.stop,
        }
        while True:
            at = time.monotonic()
            self._journal.write(ControlSet(at=at, session=self._session.id, value=control))
            try:
                await acts[control]()
            except VoiceFleetError as error:
                self._record_failure("", error)
                await anyio.sleep(_RETRY_S)
            else:
                self._paused = control == "pause"
                self._value = control
                return

    async def _turn(self, ask: Ask, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Send it until it has an end. The task counts as started once it was sent."""
        progress = self._view.of(ask.request)
        again = False
        while not progress.ended:
            turn = self._made(ask)
            at = time.monotonic()
            sent = False
            try:
                await turn.send()
                sent = True
                self._note(ask, at, "", again=again)
                if not again:
                    task_status.started()
                again = True
                async with anyio.create_task_group() as writing:
                    if isinstance(turn, StreamedTurn):
                        writing.start_soon(self._write, ask, turn)
                    await self._listen(ask, turn)
                    writing.cancel_scope.cancel()
            except VoiceFleetError as error:
                if not sent:
                    self._note(ask, at, None, again=again)
                self._record_failure(ask.request, error)
                await anyio.sleep(_RETRY_S)
            if turn.end is not None:
                self._view.end(ask.request, turn.end.reason)

    async def _listen(self, ask: Ask, turn: Turn) -> None:
        """Read the turn's frames until its end, an error or a silence."""
        progress = self._view.of(ask.request)
        while True:
            frame: Frame | None = None
            with anyio.move_on_after(SILENCE_S):
                try:
                    frame = await anext(turn)
                except (StopAsyncIteration, TurnError):
                    return
                except VoiceFleetError as error:
                    self._record_failure(ask.request, error)
                    await anyio.sleep(_RETRY_S)
                    return
            if frame is None:
                if self._paused:
                    continue
                if self._value:  # a failover may have lost it
                    await self._control(self._value)
                return
            progress.frames = frame.id.n
            self._view.pulse()
            self._journal.write(
                Heard(
                    at=time.monotonic(),
                    reader=READER,
                    session=self._session.id,
                    turn=frame.id.turn,
                    n=frame.id.n,
                    kind="frame",
                    fields={} if frame.text is None else {"text": frame.text},
                    digest=digest(frame.pcm),
                    size=len(frame.pcm),
                )
            )

    def _made(self, ask: Ask) -> Turn:
        utterance = self._utterances[ask.utterance]
        options = SpeakOptions(
            request=ask.request,
            seed=utterance.seed,
            speed=utterance.speed,
            sample_rate=utterance.sample_rate,
            interrupt=ask.interrupt,
            wait_for_worker=True,
        )
        if utterance.voice:
            options["voice"] = utterance.voice
        if ask.lead_ms is not None:
            options["lead_ms"] = ask.lead_ms
        if not utterance.streamed:
            return self._session.speak(utterance.pieces[0].text, **options)
        return self._session.stream(**options)

    async def _write(self, ask: Ask, turn: StreamedTurn) -> None:
        """Write the text piece by piece, until it is complete or the turn has ended."""
        try:
            pieces = self._utterances[ask.utterance].pieces
            for index, piece in enumerate(pieces):
                await anyio.sleep(piece.gap_s)
                await turn.write(piece.text)
                if piece.flush:
                    await turn.flush()
                self._wrote(ask, index, ended=False)
            await turn.end_text()
            self._wrote(ask, len(pieces), ended=True)
        except TurnEnded:
            pass
        except VoiceFleetError as error:
            self._record_failure(ask.request, error)

    def _wrote(self, ask: Ask, piece: int, *, ended: bool) -> None:
        at, session = time.monotonic(), self._session.id
        wrote = Wrote(at=at, session=session, request=ask.request, piece=piece, ended=ended)
        self._journal.write(wrote)

    def _note(self, ask: Ask, at: float, entry: str | None, *, again: bool) -> None:
        fields = {"session": self._session.id, "request": ask.request}
        fields |= self._utterances[ask.utterance].fields
        if ask.lead_ms is not None:
            fields["lead_ms"] = str(ask.lead_ms)
        if ask.interrupt:
            fields["interrupt"] = "1"
        self._journal.write(
            Asked(
                at=at,
                session=self._session.id,
                request=ask.request,
                model=self._main,
                utterance=ask.utterance,
                fields=fields,
                entry=entry,
                again=again,
            )
        )

    def _record_failure(self, request: str, error: VoiceFleetError) -> None:
        said = f"{type(error).__name__}: {error}"
        self._journal.write(
            ClientFailed(at=time.monotonic(), session=self._session.id, request=request, error=said)
        )
