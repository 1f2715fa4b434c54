"""A turn's segments to the utterances that the model speaks."""

from voicefleet.worker.engines.cosyvoice2.budget import MAX_TOKENS
from voicefleet.worker.engines.cosyvoice2.model_runner import ModelRunner
from voicefleet.worker.engines.cosyvoice2.text.frontend import LONGEST
from voicefleet.worker.engines.cosyvoice2.turn_sequence import StreamedText, TurnSequence, Utterance
from voicefleet.worker.engines.protocol import CannotSpeakError, Mark, Segment

PIECES_PER_SEGMENT = 1000
"""Utterances are numbered by segment, so that each is the same wherever a turn is taken up."""

SPEECH_PER_CHAR = 1.8
"""Speech tokens of a character of English: 25 tokens and some 14 characters a second."""

PAUSE_S = 0.2
"""What a segment sounds like in which nothing can be spoken."""

FEWEST = 8
"""Speech tokens of the shortest utterance of a model of random weights."""


class Composer:
    """Makes utterances for a loaded model.

    A model of random weights does not know when to end: it speaks as long as speech would be.
    """

    def __init__(self, model: ModelRunner) -> None:
        self._runner = model
        self._synthetic = model.pack.synthetic

    def pieces(self, sequence: TurnSequence, segment: Segment) -> list[Utterance]:
        """A whole segment. What cannot be spoken is an utterance without text.

        Raises:
            CannotSpeakError: It has no room behind the voice's prompt.
        """
        texts = self._runner.frontend.utterances(segment.text) or [[]]
        speech = SPEECH_PER_CHAR * len(segment.text) / max(1, sum(map(len, texts)))
        pieces: list[Utterance] = []
        for piece, text in enumerate(texts):
            number = PIECES_PER_SEGMENT * segment.index + piece
            fewest, most = self._runner.tokens_of_text(len(text))
            if self._synthetic:
                fewest = most = max(FEWEST, round(speech * len(text)))
            marks = () if piece else (Mark(0, segment),)
            pieces.append(self._utterance(sequence, number, text, fewest, most, marks))
        return pieces

    def write(self, sequence: TurnSequence, segment: Segment) -> Utterance:
        """More of a text that is being written: one utterance until its sentence ends.

        Raises:
            CannotSpeakError: It has no room behind the voice's prompt.
        """
        model, utterance = self._runner, sequence.writing
        tokens = model.frontend.piece(segment.text, first=utterance is None)
        if utterance is None:
            # Its slot counts a fill token for every few of speech.
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
        """The text that was being written is complete."""
        text = _text_of(utterance)
        sequence.writing = None
        text.interleave.close()
        _, most = self._runner.tokens_of_text(text.interleave.pushed)
        if self._synthetic:
            most = utterance.min_tokens = max(FEWEST, round(SPEECH_PER_CHAR * text.characters))
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
