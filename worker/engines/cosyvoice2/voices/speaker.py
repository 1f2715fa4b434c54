"""A voice as the model is given it, and what a turn's mode takes of it."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceOOMError
from voicefleet.worker.engines.cosyvoice2.text.frontend import TextFrontend
from voicefleet.worker.engines.cosyvoice2.voices.voice import Voice
from voicefleet.worker.engines.protocol import CannotSpeakError, TurnSpec

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


def find(voices: Mapping[str, Voice], name: str) -> Voice:
    """The voice of that name. Raises ``CannotSpeakError``."""
    voice = voices.get(name)
    if voice is None:
        raise CannotSpeakError(f"unknown voice; the voices are {', '.join(voices)}")
    return voice


class Speakers:
    """The voices of a model: each is prepared when it is first asked for, and kept.

    Where there is no room for another, the one that has been unused longest makes room.

    Args:
        voices: By name.
        prepare: Makes what the renderer keeps of a voice.
        free: Frees it.
    """

    def __init__(
        self,
        voices: Mapping[str, Voice],
        prepare: Callable[[Voice], Any],
        free: Callable[[Any], None],
    ) -> None:
        self._voices = voices
        self._prepare = prepare
        self._free = free
        # Those used last are at the end.
        self._kept: dict[str, Speaker] = {}
        self._users: Counter[Speaker] = Counter()

    @property
    def names(self) -> tuple[str, ...]:
        """Those that can be asked for, in order."""
        return tuple(self._voices)

    def acquire(self, name: str) -> Speaker:
        """The speaker of that name, to be given back.

        Raises:
            CannotSpeakError: There is none.
            CosyVoiceOOMError: There is no room for it, and all others are in use.
        """
        voice = find(self._voices, name)
        speaker = self._kept.pop(name, None) or self._prepared(voice)
        self._kept[name] = speaker
        self._users[speaker] += 1
        return speaker

    def preload(self, name: str) -> None:
        """Prepare a voice before anybody asks for it. Raises as ``acquire``."""
        self.release(self.acquire(name))

    def release(self, speaker: Speaker) -> None:
        """One user less."""
        self._users[speaker] -= 1

    def evict(self) -> bool:
        """Forget the voice that has been unused longest. Returns whether there was one."""
        unused = next((s for s in self._kept.values() if not self._users[s]), None)
        if unused is None:
            return False
        del self._kept[unused.voice.name], self._users[unused]
        self._free(unused.flow_prompt)
        return True

    def _prepared(self, voice: Voice) -> Speaker:
        while True:
            try:
                return Speaker(voice, self._prepare(voice))
            except CosyVoiceOOMError:
                if not self.evict():
                    raise
