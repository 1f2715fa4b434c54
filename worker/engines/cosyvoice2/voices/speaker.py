"""A voice as the model is given it, and what a turn's mode takes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from worker.engines.cosyvoice2.text.frontend import TextFrontend
from worker.engines.cosyvoice2.voices.voice import Voice
from worker.engines.protocol import CannotSpeakError, TurnSpec

ZERO_SHOT, CROSS_LINGUAL, INSTRUCT, SFT = "zero_shot", "cross_lingual", "instruct", "sft"


@dataclass(frozen=True, eq=False)
class Speaker:
    """A voice in use. ``flow_prompt`` is what the renderer keeps of it for all its sessions."""

    voice: Voice
    flow_prompt: Any

    @property
    def flow_tokens(self) -> int:
        """Prompt tokens in front of the flow's."""
        return len(self.voice.flow_tokens)


@dataclass(frozen=True)
class Conditioning:
    """What the language model is told beside the text: token ids."""

    text: list[int]
    speech: list[int]

    @property
    def length(self) -> int:
        """Positions that it takes."""
        return len(self.text) + len(self.speech)


def modes_of(voice: Voice) -> tuple[str, ...]:
    """What can be done with a voice, its default first."""
    if not voice.has_prompt:
        return SFT, INSTRUCT
    if voice.prompt_text or voice.prompt_text_tokens is not None:
        return ZERO_SHOT, CROSS_LINGUAL, INSTRUCT
    return CROSS_LINGUAL, INSTRUCT


def condition(spec: TurnSpec, voice: Voice, frontend: TextFrontend) -> Conditioning:
    """What the mode of ``spec`` takes of the voice for the language model.

    The flow is given the whole voice in every mode (upstream's ``frontend_zero_shot``,
    ``frontend_cross_lingual``, ``frontend_instruct2`` and ``frontend_sft``).

    Raises:
        CannotSpeakError: The voice has not what the mode needs.
    """
    offered = modes_of(voice)
    mode = spec.mode or (INSTRUCT if spec.instruct is not None else offered[0])
    if mode not in offered:
        raise CannotSpeakError(
            f"mode: the voice {voice.name} offers {', '.join(offered)}, not {mode}"
        )
    if mode == INSTRUCT:
        if spec.instruct is None:
            raise CannotSpeakError("instruct: the mode instruct needs an instruction")
        return Conditioning(frontend.instruction(spec.instruct), [])
    if spec.instruct is not None:
        raise CannotSpeakError(f"instruct: the mode {mode} takes no instruction")
    if mode == ZERO_SHOT:
        return Conditioning(_prompt_text(voice, frontend), voice.speech_tokens.tolist())
    return Conditioning([], [])


def _prompt_text(voice: Voice, frontend: TextFrontend) -> list[int]:
    if voice.prompt_text_tokens is not None:
        return voice.prompt_text_tokens.tolist()
    return frontend.prompt(voice.prompt_text)


class Speakers:
    """The voices of a model: each is prepared when it is first asked for, and kept.

    Args:
        voices: By name.
        prepare: Makes what the renderer keeps of a voice.
    """

    def __init__(self, voices: Mapping[str, Voice], prepare: Callable[[Voice], Any]) -> None:
        self._voices = voices
        self._prepare = prepare
        self._kept: dict[str, Speaker] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Those that can be asked for, in order."""
        return tuple(self._voices)

    @property
    def kept(self) -> int:
        """How many are in use."""
        return len(self._kept)

    def get(self, name: str) -> Speaker:
        """The speaker of that name.

        Raises:
            CannotSpeakError: There is none.
        """
        if name not in self._voices:
            raise CannotSpeakError(f"unknown voice; the voices are {', '.join(self._voices)}")
        speaker = self._kept.get(name)
        if speaker is None:
            voice = self._voices[name]
            speaker = self._kept[name] = Speaker(voice, self._prepare(voice))
        return speaker
