"""Scheduling by deadline: serve first the turn whose listener runs out of audio first.

Pure Python, without tensors.
"""

from collections.abc import Iterable, Sequence

from voicefleet.worker.engines.cosyvoice2.turn_sequence import TurnSequence, Utterance

DECODE_AHEAD_TOKENS = 50
"""Tokens that a sequence may decode beyond its next block, in steps that another one needs."""

URGENT_S = 0.8
"""A sequence with less slack than this is rendered at once; others wait for a fuller batch."""


class Scheduler:
    """Chooses the sequences to render, to prefill and to decode next.

    Args:
        batches: Batch sizes of the renderer, ascending. It computes the smallest that holds the
            rows, so that further rows up to that size are free.
        max_ahead_s: A sequence with this many seconds of unconsumed audio waits.

    ``batch`` is the most rows rendered at once; it may be set to less than the largest size.
    """

    def __init__(self, batches: Sequence[int], max_ahead_s: float) -> None:
        self._batches = tuple(batches)
        self.batch = self._batches[-1]
        self._max_ahead_s = max_ahead_s

    def to_render(self, sequences: Iterable[TurnSequence], now: float) -> list[TurnSequence]:
        """The sequences whose next chunk is rendered now, the most urgent first; perhaps none.

        Urgent sequences are rendered at once. Others join only in rows that the chosen batch size
        leaves free, so that a first chunk never waits for sequences that still have audio. If none
        is urgent, the batch waits until it is full or no sequence needs the device for decoding.
        """
        able: list[tuple[float, TurnSequence]] = []
        decoding = False
        for sequence in sequences:
            if not self._wants_audio(sequence):
                continue
            utterance = sequence.rendering
            if utterance is not None and utterance.ready:
                able.append((sequence.slack_s(now), sequence))
            elif _needs_decoding(sequence):
                decoding = True
        able.sort(key=lambda entry: entry[0])
        urgent = sum(slack < URGENT_S for slack, _ in able)
        if urgent:
            chosen = able[: self._size_of(urgent)]
        elif len(able) >= self.batch or not decoding:
            chosen = able[: self.batch]
        else:
            chosen = []
        return [sequence for _, sequence in chosen]

    def to_begin(self, sequences: Iterable[TurnSequence], now: float) -> list[TurnSequence]:
        """The sequences whose next utterance can be prefilled now, the most urgent first."""
        able = [s for s in sequences if s.next_utterance is not None and self._wants_audio(s)]
        return sorted(able, key=lambda sequence: sequence.slack_s(now))

    def to_decode(
        self, sequences: Iterable[TurnSequence], now: float, longest: int
    ) -> tuple[int, dict[TurnSequence, int]]:
        """How many decode steps to run, and how many tokens each sequence may have after them.

        Decoding is needed when a sequence that wants audio lacks tokens for its next chunk. The
        steps are those that the most urgent one needs, at most ``longest``. All other sequences
        decode too, up to ``DECODE_AHEAD_TOKENS`` ahead: a step costs the same for one as for all.

        Returns:
            ``(0, {})`` if no sequence needs decoding.
        """
        starved: list[tuple[float, int]] = []
        limits: dict[TurnSequence, int] = {}
        for sequence in sequences:
            utterance = sequence.decoding
            if utterance is None or utterance.stalled:
                continue
            missing = _missing(sequence, utterance)
            if missing and self._wants_audio(sequence):
                starved.append((sequence.slack_s(now), missing))
            limits[sequence] = min(utterance.needed + DECODE_AHEAD_TOKENS, utterance.max_tokens)
        if not starved:
            return 0, {}
        steps = min(longest, min(starved)[1])
        return steps, {
            sequence: min(limit, len(sequence.decoding.tokens) + steps)
            for sequence, limit in limits.items()
            if sequence.decoding is not None
        }

    def _size_of(self, rows: int) -> int:
        """The batch size that is computed for ``rows`` rows."""
        sizes = (size for size in self._batches if size >= rows)
        return min(next(sizes, self.batch), self.batch)

    def _wants_audio(self, sequence: TurnSequence) -> bool:
        return sequence.ahead_s < self._max_ahead_s


def _needs_decoding(sequence: TurnSequence) -> bool:
    if sequence.decoding is not None:
        return not sequence.decoding.stalled
    return sequence.next_utterance is not None


def _missing(sequence: TurnSequence, utterance: Utterance) -> int:
    """How many tokens of ``utterance`` the renderer waits for."""
    if sequence.rendering is not utterance:
        # An earlier utterance is rendered first: one token keeps this one from falling behind.
        return 0 if utterance.tokens else 1
    # Decoding stops at ``max_tokens``.
    return min(utterance.missing, max(1, utterance.max_tokens - len(utterance.tokens)))
