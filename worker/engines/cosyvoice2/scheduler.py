"""Who is served next: by the time at which each listener runs dry. Knows no tensors."""

from collections.abc import Iterable

from worker.engines.cosyvoice2.session import Session, Utterance

RIDE_TOKENS = 50
"""Tokens that a session decodes ahead of its next block where others need the step anyway."""

URGENT_S = 0.8
"""A session with less audio than this is served at once; others wait until a batch is worth it."""


class Scheduler:
    """Chooses sessions for the next batch of blocks and for the next burst of decoding.

    Args:
        batch: Blocks rendered at once, at most.
        max_ahead_s: A session with so much audio untaken waits.
    """

    def __init__(self, batch: int, max_ahead_s: float) -> None:
        self.batch = batch
        self._max_ahead_s = max_ahead_s

    def to_render(self, sessions: Iterable[Session], now: float) -> list[Session]:
        """Sessions whose next block is to be rendered now, the most urgent first; perhaps none.

        Rendering costs nearly the same for one block as for a batch. So a batch waits until it is
        full, until somebody in it is urgent, or until nobody needs the device for decoding.
        """
        able: list[tuple[float, Session]] = []
        decoding = False
        for session in sessions:
            if not self._wants_audio(session):
                continue
            utterance = session.rendering
            if utterance is not None and utterance.ready:
                able.append((session.slack_s(now), session))
            elif _needs_decoding(session):
                decoding = True
        able.sort(key=lambda entry: entry[0])
        chosen = able[: self.batch]
        due = chosen and (chosen[0][0] < URGENT_S or len(chosen) == self.batch or not decoding)
        return [session for _, session in chosen] if due else []

    def to_begin(self, sessions: Iterable[Session], now: float) -> list[Session]:
        """Sessions whose next utterance is to enter the decoder, the most urgent first."""
        able = [s for s in sessions if s.next_utterance is not None and self._wants_audio(s)]
        return sorted(able, key=lambda session: session.slack_s(now))

    def to_decode(
        self, sessions: Iterable[Session], now: float, longest: int
    ) -> tuple[int, dict[Session, int]]:
        """How many steps to decode, and up to how many tokens each session may.

        A burst is as long as its most urgent session needs for a block, at most ``longest``.
        Decoding is needed when a session that wants audio lacks tokens for its next block; then
        all the others ride along, for a step costs the same for one as for all.
        """
        hungry: list[tuple[float, int]] = []
        riders: dict[Session, int] = {}
        for session in sessions:
            utterance = session.decoding
            if utterance is None or utterance.stalled:
                continue
            missing = _missing(session, utterance)
            if missing and self._wants_audio(session):
                hungry.append((session.slack_s(now), missing))
            riders[session] = min(utterance.needed + RIDE_TOKENS, utterance.max_tokens)
        if not hungry:
            return 0, {}
        steps = min(longest, min(hungry)[1])
        return steps, {
            session: min(limit, len(session.decoding.tokens) + steps)
            for session, limit in riders.items()
            if session.decoding is not None
        }

    def _wants_audio(self, session: Session) -> bool:
        return session.ahead_s < self._max_ahead_s


def _needs_decoding(session: Session) -> bool:
    if session.decoding is not None:
        return not session.decoding.stalled
    return session.next_utterance is not None


def _missing(session: Session, utterance: Utterance) -> int:
    """Tokens that the session's decoder owes its renderer."""
    if session.rendering is not utterance:
        # An earlier utterance is still to be rendered: no hurry, but something to go on with.
        return 0 if utterance.tokens else 1
    # More than it may have at most will not come.
    return min(utterance.missing, max(1, utterance.max_tokens - len(utterance.tokens)))
