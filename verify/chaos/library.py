"""One session, driven through the Python client as its users do.

What the client raises where its caller did nothing wrong is put on record; then the same request
is spoken again under its name, as the client's own words advise.
"""

import time
from collections.abc import Mapping
from typing import Final

import anyio
from anyio.abc import TaskGroup

from verify.chaos.hearing import Hearing
from verify.chaos.journal import Asked, Complained, Heard, Journal, Wished, Wrote
from verify.chaos.plan import Course
from verify.chaos.recorder import digest
from verify.chaos.repertoire import Utterance
from verify.chaos.script import Add, Ask, ControlValue, Hear, Move, Rest, Until
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
"""After so long without a frame, a turn that is not paused is asked for again."""

_RETRY_S: Final = 0.5


class LibraryConversation:
    """Plays a session's course. ``run`` returns when each request has its end."""

    def __init__(
        self,
        course: Course,
        main: str,
        utterances: Mapping[str, Utterance],
        fleet: VoiceFleet,
        journal: Journal,
    ) -> None:
        self._course = course
        self._main = main
        self._utterances = utterances
        self._session: Session = fleet.session(course.session, model=main)
        self._journal = journal
        self._hearing = Hearing(course.session, journal)
        self._paused = False
        self._wished = ""

    async def run(self) -> None:
        """Play all scenes."""
        for scene in self._course.scenes:
            async with anyio.create_task_group() as turns:
                for move in scene.moves:
                    await self._make(move, turns)

    async def _make(self, move: Move, turns: TaskGroup) -> None:
        match move:
            case Add(asks):
                for ask in asks:
                    await turns.start(self._turn, ask)
            case Hear(request, frames):
                await self._hearing.heard(request, frames)
            case Rest(seconds):
                await anyio.sleep(seconds)
            case ControlValue(value):
                await self._wish(value)
            case Until(requests):
                await self._hearing.ended(requests)
            case _:
                raise AssertionError(f"not played here: {move}")

    async def _wish(self, value: str) -> None:
        wish = value.lower() or "resume"
        acts = {
            "pause": self._session.pause,
            "resume": self._session.resume,
            "stop": self._session.stop,
        }
        while True:
            at = time.monotonic()
            self._journal.write(Wished(at=at, session=self._session.id, value=wish))
            try:
                await acts[wish]()
            except VoiceFleetError as error:
                self._complain("", error)
                await anyio.sleep(_RETRY_S)
            else:
                self._paused = wish == "pause"
                self._wished = wish
                return

    async def _turn(self, ask: Ask, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Speak it, as often as it takes; started when it was sent for the first time."""
        progress = self._hearing.of(ask.request)
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
                self._complain(ask.request, error)
                await anyio.sleep(_RETRY_S)
            if turn.end is not None:
                self._hearing.end(ask.request, turn.end.reason)

    async def _listen(self, ask: Ask, turn: Turn) -> None:
        """Take the turn's frames while they come."""
        progress = self._hearing.of(ask.request)
        while True:
            frame: Frame | None = None
            with anyio.move_on_after(SILENCE_S):
                try:
                    frame = await anext(turn)
                except (StopAsyncIteration, TurnError):
                    return
                except VoiceFleetError as error:
                    self._complain(ask.request, error)
                    await anyio.sleep(_RETRY_S)
                    return
            if frame is None:
                if self._paused:
                    continue
                if self._wished:  # a failover may have forgotten the last wish
                    await self._wish(self._wished)
                return
            progress.frames = frame.id.n
            self._hearing.pulse()
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
        """Write the text piece by piece, until it or the turn is over."""
        try:
            for index, piece in enumerate(self._utterances[ask.utterance].pieces):
                await anyio.sleep(piece.gap_s)
                await turn.write(piece.text)
                if piece.flush:
                    await turn.flush()
                self._wrote(ask, index, ended=False)
            await turn.end_text()
            self._wrote(ask, index + 1, ended=True)
        except TurnEnded:
            pass
        except VoiceFleetError as error:
            self._complain(ask.request, error)

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

    def _complain(self, request: str, error: VoiceFleetError) -> None:
        said = f"{type(error).__name__}: {error}"
        self._journal.write(
            Complained(at=time.monotonic(), session=self._session.id, request=request, error=said)
        )
