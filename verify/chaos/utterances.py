"""The utterances of a run, each of which always gives the same samples."""

import random
from collections.abc import Sequence
from typing import Final

import msgspec

SABOTAGE: Final = ("Poison", "Stumble", "Falter", "Hang", "Gorge")
"""First words that the saboteur engine acts on. Utterances are named after them: ``poison-1``."""

NEVER_SPOKEN: Final = ("Poison", "Stumble", "Gorge")
"""Those that fail on every attempt."""

SECONDS_PER_CHAR: Final = 0.065
"""Length of the tone engine's speech, at speed 1."""

PLAIN: Final = 16
STREAMED: Final = 8
OF_OTHERS: Final = 3
"""Utterances for each further model, the last of them streamed."""

_RATES: Final = (48000, 48000, 24000, 16000, 8000)
_SPEEDS: Final = (1.0, 1.0, 1.0, 0.8, 1.25, 2.0)
_VOICES: Final = ("", "", "tone-a", "tone-b")
_VOCABULARY: Final = (
    "the a quiet early late morning train river window letter garden captain market winter "
    "carries opens follows remembers answers turns slowly again never always perhaps under over "
    "behind every small golden distant voice number seven twelve station harbour and but with"
)
_WORDS: Final = tuple(_VOCABULARY.split())


class Models(msgspec.Struct, frozen=True, kw_only=True):
    """The models of a run. ``main`` is a tone; ``saboteur`` fails as a text's first word says.

    Each of ``others`` (slow ones) gets ``other_sessions`` sessions.
    """

    main: str = "tone-test"
    saboteur: str | None = None
    others: tuple[str, ...] = ()
    other_sessions: int = 2

    def by_session(self, sessions: int) -> dict[int, str]:
        """The model of each session that does not speak with ``main``, by its number."""
        wanted = [model for model in self.others for _ in range(self.other_sessions)]
        return dict(enumerate(wanted[: max(0, sessions - 1)]))


class Piece(msgspec.Struct, frozen=True):
    """Part of a text. A streamed one is written ``gap_s`` after the previous one."""

    text: str
    flush: bool = False
    gap_s: float = 0.0


class Utterance(msgspec.Struct, frozen=True, kw_only=True):
    """A text and how it is spoken. One that is not streamed has one piece.

    ``voice`` is empty for the model's default; ``sabotage`` is the text's first word where a
    saboteur is to act on it.
    """

    name: str
    model: str
    pieces: tuple[Piece, ...]
    streamed: bool
    sample_rate: int
    speed: float
    voice: str
    seed: int
    sabotage: str = ""

    @property
    def seconds(self) -> float:
        """About how long its speech is."""
        characters = sum(len(piece.text) for piece in self.pieces)
        return characters * SECONDS_PER_CHAR / self.speed

    @property
    def fields(self) -> dict[str, str]:
        """A request's fields without its text; those at their defaults are left out."""
        fields = {"seed": str(self.seed)}
        if self.streamed:
            fields["stream"] = "1"
        if self.sample_rate != 48000:
            fields["sample_rate"] = str(self.sample_rate)
        if self.speed != 1.0:
            fields["speed"] = str(self.speed)
        if self.voice:
            fields["voice"] = self.voice
        return fields


def make_utterances(chance: random.Random, models: Models) -> tuple[Utterance, ...]:
    """All utterances of a run: of the main model, of the others, and what the saboteur gets."""
    said = [_plain(chance, models.main, f"plain-{k}", k) for k in range(PLAIN)]
    said += [_streamed(chance, models.main, f"streamed-{k}") for k in range(STREAMED)]
    for model in models.others:
        said += [_short(chance, model, f"{model}-{k}") for k in range(OF_OTHERS - 1)]
        said.append(_short(chance, model, f"{model}-streamed", streamed=True))
    if models.saboteur is not None:
        said += [_sabotage(chance, models.saboteur, word) for word in SABOTAGE]
    return tuple(said)


def _plain(chance: random.Random, model: str, name: str, k: int) -> Utterance:
    speed = chance.choice(_SPEEDS)
    seconds = 1.0 + 5.0 * k / PLAIN  # every length between 1 and 6 s
    text = _text(chance, seconds * speed)
    return _utterance(chance, model, name, (Piece(text),), speed=speed)


def _streamed(chance: random.Random, model: str, name: str) -> Utterance:
    text = _text(chance, chance.uniform(1.5, 5.0))
    pieces: list[Piece] = []
    while text:  # cut anywhere, as tokens are
        length = chance.randint(2, 24)
        gap_s = round(chance.choice((0.0, 0.02, 0.1, 0.4)) * chance.random(), 3)
        pieces.append(Piece(text[:length], flush=chance.random() < 0.15, gap_s=gap_s))
        text = text[length:]
    return _utterance(chance, model, name, tuple(pieces), streamed=True)


def _short(chance: random.Random, model: str, name: str, *, streamed: bool = False) -> Utterance:
    words = [*_text(chance, 1.5).split(), "again."]
    cut = len(words) // 2
    pieces = (Piece(" ".join(words[:cut]) + " "), Piece(" ".join(words[cut:]), gap_s=0.2))
    whole = (Piece(" ".join(words)),)
    return msgspec.structs.replace(
        _utterance(chance, model, name, pieces if streamed else whole, streamed=streamed),
        voice="",
        sample_rate=24000,
    )


def _sabotage(chance: random.Random, model: str, word: str) -> Utterance:
    text = f"{word} {_text(chance, 2.0)}"
    made = _utterance(chance, model, f"{word.lower()}-1", (Piece(text),))
    return msgspec.structs.replace(made, sabotage=word)


def _utterance(
    chance: random.Random,
    model: str,
    name: str,
    pieces: Sequence[Piece],
    *,
    streamed: bool = False,
    speed: float = 1.0,
) -> Utterance:
    return Utterance(
        name=name,
        model=model,
        pieces=tuple(pieces),
        streamed=streamed,
        sample_rate=chance.choice(_RATES),
        speed=speed,
        voice=chance.choice(_VOICES),
        seed=chance.randrange(1 << 32),
    )


def _text(chance: random.Random, seconds: float) -> str:
    """Sentences of about so much speech at speed 1."""
    text, since_stop = "", 0
    while len(text) * SECONDS_PER_CHAR < seconds:
        word = chance.choice(_WORDS)
        text += word.capitalize() if since_stop == 0 else word
        since_stop += 1
        ends = since_stop > 3 and chance.random() < 0.3
        text += ". " if ends else ", " if chance.random() < 0.1 else " "
        since_stop = 0 if ends else since_stop
    return text.rstrip(" ,.") + "."
