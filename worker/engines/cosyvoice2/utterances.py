"""Turns a turn's segments into the utterances that the model speaks."""

from voicefleet.worker.engines.cosyvoice2.budget import MAX_TOKENS
from voicefleet.worker.engines.cosyvoice2.model_runner import ModelRunner
from voicefleet.worker.engines.cosyvoice2.text.frontend import LONGEST
from voicefleet.worker.engines.cosyvoice2.turn_sequence import StreamedText, TurnSequence, Utterance
from voicefleet.worker.engines.protocol import CannotSpeakError, Mark, Segment

PIECES_PER_SEGMENT = 1000
"""Utterances are numbered from this multiple of their segment's index, so that a worker that
takes a turn over in the middle gives each the same number, and with it the same random draws."""

SPEECH_PER_CHAR = 1.8
"""Speech tokens for each character of English: 25 tokens and about 14 characters a second."""

PAUSE_S = 0.2
"""The silence that stands for a segment in which nothing can be spoken."""

MIN_SYNTHETIC_TOKENS = 8
"""Speech tokens of the shortest utterance of a model of random weights."""


class Composer:
    """Makes utterances for a loaded model.

    A model of random weights does not learn when to end, so its utterances get the length that
    speech of their text would have.
    """

    def __init__(self, model: ModelRunner) -> None:
        self._runner = model
        self._synthetic = model.pack.synthetic

    def pieces(self, sequence: TurnSequence, segment: Segment) -> list[Utterance]:
        """The utterances of a complete segment. One without speakable text gives a pause.

        Raises:
            CannotSpeakError: The decoder's slot has no room for it after the voice's prompt.
        """
        texts = self._runner.frontend.utterances(segment.text) or [[]]
        speech = SPEECH_PER_CHAR * len(segment.text) / max(1, sum(map(len, texts)))
        pieces: list[Utterance] = []
        for piece, text in enumerate(texts):
            number = PIECES_PER_SEGMENT * segment.index + piece
            fewest, most = self._runner.tokens_of_text(len(text))
            if self._synthetic:
                fewest = most = max(MIN_SYNTHETIC_TOKENS, round(speech * len(text)))
            marks = () if piece else (Mark(0, segment),)
            pieces.append(self._utterance(sequence, number, text, fewest, most, marks))
        return pieces

    def write(self, sequence: TurnSequence, segment: Segment) -> Utterance:
        """Add a segment of streamed text: one utterance grows until its sentence ends.

        Raises:
            CannotSpeakError: The decoder's slot has no room for it after the voice's prompt.
        """
        model, utterance = self._runner, sequence.writing
        tokens = model.frontend.piece(segment.text, first=utterance is None)
        if utterance is None:
            # Fill tokens take places in the slot too.
            most = MAX_TOKENS - model.fills(MAX_TOKENS)
            number = PIECES_PER_SEGMENT * segment.index
            utterance = self._utterance(sequence, number, [], 0, most, (Mark(0, segment),))
            text = utterance.streamed = StreamedText(model.interleave(sequence))
            sequence.writing = utterance
            sequence.waiting.append(utterance)
        else:
            text = _text_of(utterance)
            begins = model.speech_of(text.interleave.pushed)
            text.marks.append((begins, Mark(0, segment, resumable=False)))
        text.interleave.push(tokens)
        text.characters += len(segment.text)
        if not segment.open or text.interleave.pushed >= LONGEST:
            self.close(sequence, utterance)
        return utterance

    def close(self, sequence: TurnSequence, utterance: Utterance) -> Utterance:
        """Mark the utterance's streamed text as complete."""
        text = _text_of(utterance)
        sequence.writing = None
        text.interleave.close()
        _, most = self._runner.tokens_of_text(text.interleave.pushed)
        if self._synthetic:
            most = utterance.min_tokens = max(
                MIN_SYNTHETIC_TOKENS, round(SPEECH_PER_CHAR * text.characters)
            )
        utterance.max_tokens = max(len(utterance.tokens), min(most, utterance.max_tokens))
        return utterance

    def _utterance(
        self,
        sequence: TurnSequence,
        number: int,
        text: list[int],
        fewest: int,
        most: int,
        marks: tuple[Mark, ...],
    ) -> Utterance:
        room = self._runner.room(len(text) + sequence.conditioning.length)
        if room <= 0:
            raise CannotSpeakError("the voice's prompt and the segment are too long together")
        return Utterance(
            number=number,
            text=text,
            marks=marks,
            min_tokens=min(fewest, room),
            max_tokens=min(most, room),
            chunking=self._runner.audio.chunking(sequence.speaker),
        )


def _text_of(utterance: Utterance) -> StreamedText:
    assert utterance.streamed is not None
    return utterance.streamed
