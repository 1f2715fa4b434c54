"""Voices in use, and the prompt that a turn's mode takes from a voice."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceOOMError
from voicefleet.worker.engines.cosyvoice2.text.frontend import TextFrontend
from voicefleet.worker.engines.cosyvoice2.voices.voice import Voice
from voicefleet.worker.engines.protocol import CannotSpeakError, TurnSpec

ZERO_SHOT, CROSS_LINGUAL, INSTRUCT, SFT = "zero_shot", "cross_lingual", "instruct", "sft"


@dataclass(frozen=True, eq=False)
class Speaker:
    """A voice in use. ``flow_prompt`` is the renderer's prompt, shared by all its turns."""

    voice: Voice
    flow_prompt: Any

    @property
    def flow_tokens(self) -> int:
        """How many speech tokens the flow's prompt has."""
        return len(self.voice.flow_tokens)


@dataclass(frozen=True)
class Conditioning:
    """The prompt of the language model: token ids of its text and of its speech."""

    text: list[int]
    speech: list[int]

    @property
    def length(self) -> int:
        """How many KV cache positions it takes."""
        return len(self.text) + len(self.speech)


def modes_of(voice: Voice) -> tuple[str, ...]:
    """The modes that a voice offers, its default first."""
    if not voice.has_prompt:
        return SFT, INSTRUCT
    if voice.prompt_text or voice.prompt_text_tokens is not None:
        return ZERO_SHOT, CROSS_LINGUAL, INSTRUCT
    return CROSS_LINGUAL, INSTRUCT


def modes_of_all(voices: Iterable[Voice]) -> tuple[str, ...]:
    """The modes that at least one of ``voices`` offers."""
    offered = {mode for voice in voices for mode in modes_of(voice)}
    return tuple(mode for mode in (ZERO_SHOT, CROSS_LINGUAL, INSTRUCT, SFT) if mode in offered)


def condition(spec: TurnSpec, voice: Voice, frontend: TextFrontend) -> Conditioning:
    """The language model's prompt for the mode of ``spec``.

    The flow gets the whole voice in every mode, as in upstream's ``frontend_zero_shot``,
    ``frontend_cross_lingual``, ``frontend_instruct2`` and ``frontend_sft``.

    Raises:
        CannotSpeakError: The voice does not offer the mode, or the instruction does not fit it.
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
    """A cache of prepared voices: each is prepared at its first use, and kept.

    If there is no room for another, the least recently used voice without a turn is evicted.

    Args:
        voices: All voices by name.
        prepare: Makes the renderer's prompt of a voice.
        free: Frees such a prompt.
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
        # Ordered by use, the most recent last.
        self._kept: dict[str, Speaker] = {}
        self._users: Counter[Speaker] = Counter()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all voices, in order."""
        return tuple(self._voices)

    def acquire(self, name: str) -> Speaker:
        """The speaker of that name; ``release`` it after use.

        Raises:
            CannotSpeakError: There is no such voice.
            CosyVoiceOOMError: There is no room for it, and all prepared voices are in use.
        """
        voice = find(self._voices, name)
        speaker = self._kept.pop(name, None) or self._prepared(voice)
        self._kept[name] = speaker
        self._users[speaker] += 1
        return speaker

    def preload(self, name: str) -> None:
        """Prepare a voice ahead of its first turn. Raises as ``acquire``."""
        self.release(self.acquire(name))

    def release(self, speaker: Speaker) -> None:
        """Count one user less."""
        self._users[speaker] -= 1

    def evict(self) -> bool:
        """Evict the least recently used voice without a turn. Returns whether there was one."""
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
