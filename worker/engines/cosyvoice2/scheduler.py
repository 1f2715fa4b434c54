"""Who is served next: by the time at which each listener runs dry. Knows no tensors."""

from collections.abc import Iterable, Sequence

from voicefleet.worker.engines.cosyvoice2.turn_sequence import TurnSequence, Utterance

RIDE_TOKENS = 50
"""Tokens that a sequence decodes ahead of its next block where others need the step anyway."""

URGENT_S = 0.8
"""A sequence with less audio than this is served at once; others wait until a batch is worth it."""


class Scheduler:
    """Chooses sequences for the next batch of blocks and for the next burst of decoding.

    Args:
        batches: Sizes of a batch of blocks, ascending: the device computes the smallest that holds
            the rows, so that rows up to its size cost nothing more.
        max_ahead_s: A sequence with so much audio untaken waits.

    ``batch`` is the most blocks rendered at once; it may be set to less than the largest size.
    """

    def __init__(self, batches: Sequence[int], max_ahead_s: float) -> None:
        self._batches = tuple(batches)
        self.batch = self._batches[-1]
        self._max_ahead_s = max_ahead_s

    def to_render(self, sequences: Iterable[TurnSequence], now: float) -> list[TurnSequence]:
        """Sessions whose next block is to be rendered now, the most urgent first; perhaps none.

        A batch costs what its size in ``batches`` costs. Whoever is urgent is served at once, with
        others only in rows of that size which are left over: a first chunk must not wait for the
        computation of others who still have audio. Without anybody urgent a batch waits until it
        is full, or until nobody needs the device for decoding.
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
        """Sessions whose next utterance is to enter the decoder, the most urgent first."""
        able = [s for s in sequences if s.next_utterance is not None and self._wants_audio(s)]
        return sorted(able, key=lambda sequence: sequence.slack_s(now))

    def to_decode(
        self, sequences: Iterable[TurnSequence], now: float, longest: int
    ) -> tuple[int, dict[TurnSequence, int]]:
        """How many steps to decode, and up to how many tokens each sequence may.

        A burst is as long as its most urgent sequence needs for a block, at most ``longest``.
        Decoding is needed when a sequence that wants audio lacks tokens for its next block; then
        all the others ride along, for a step costs the same for one as for all.
        """
        hungry: list[tuple[float, int]] = []
        riders: dict[TurnSequence, int] = {}
        for sequence in sequences:
            utterance = sequence.decoding
            if utterance is None or utterance.stalled:
                continue
            missing = _missing(sequence, utterance)
            if missing and self._wants_audio(sequence):
                hungry.append((sequence.slack_s(now), missing))
            riders[sequence] = min(utterance.needed + RIDE_TOKENS, utterance.max_tokens)
        if not hungry:
            return 0, {}
        steps = min(longest, min(hungry)[1])
        return steps, {
            sequence: min(limit, len(sequence.decoding.tokens) + steps)
            for sequence, limit in riders.items()
            if sequence.decoding is not None
        }

    def _size_of(self, rows: int) -> int:
        """The size of the batch that is computed for so many rows."""
        sizes = (size for size in self._batches if size >= rows)
        return min(next(sizes, self.batch), self.batch)

    def _wants_audio(self, sequence: TurnSequence) -> bool:
        return sequence.ahead_s < self._max_ahead_s


def _needs_decoding(sequence: TurnSequence) -> bool:
    if sequence.decoding is not None:
        return not sequence.decoding.stalled
    return sequence.next_utterance is not None


def _missing(sequence: TurnSequence, utterance: Utterance) -> int:
    """Tokens that the sequence's decoder owes its renderer."""
    if sequence.rendering is not utterance:
        # An earlier utterance is still to be rendered: no hurry, but something to go on with.
        return 0 if utterance.tokens else 1
    # More than it may have at most will not come.
    return min(utterance.missing, max(1, utterance.max_tokens - len(utterance.tokens)))
