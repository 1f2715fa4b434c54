"""The voices in use: prepared once, shared, and making room for others."""

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs the cosyvoice extra")

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceOOMError
from voicefleet.worker.engines.cosyvoice2.voices.speaker import Speakers
from voicefleet.worker.engines.cosyvoice2.voices.voice import Voice
from voicefleet.worker.engines.protocol import CannotSpeakError


class Room:
    """Has place for two voices."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.prepared: list[str] = []

    def prepare(self, voice: Voice) -> str:
        if len(self.held) == 2:
            raise CosyVoiceOOMError("no room")
        self.held.append(voice.name)
        self.prepared.append(voice.name)
        return voice.name

    def release(self, prepared: str) -> None:
        self.held.remove(prepared)


@pytest.fixture
def room() -> Room:
    return Room()


@pytest.fixture
def speakers(room: Room) -> Speakers:
    one = np.ones(192, dtype=np.float32)
    voices = {name: Voice(name=name, speaker=one) for name in ("a", "b", "c")}
    return Speakers(voices, room.prepare, room.release)


def test_a_voice_is_prepared_once_for_all_who_use_it(speakers: Speakers, room: Room) -> None:
    first, second = speakers.take("a"), speakers.take("a")
    assert first is second
    speakers.give_back(first)
    speakers.give_back(second)
    assert speakers.take("a") is first
    assert room.prepared == ["a"]


def test_the_one_unused_longest_makes_room(speakers: Speakers, room: Room) -> None:
    for name in ("a", "b", "a"):
        speakers.give_back(speakers.take(name))
    speakers.take("c")
    assert room.held == ["a", "c"]


def test_a_voice_in_use_stays(speakers: Speakers, room: Room) -> None:
    a = speakers.take("a")
    speakers.give_back(speakers.take("b"))
    speakers.take("c")
    assert room.held == ["a", "c"]
    with pytest.raises(CosyVoiceOOMError):
        speakers.take("b")
    speakers.give_back(a)
    speakers.take("b")
    assert room.held == ["c", "b"]


def test_an_unknown_voice_is_refused_with_those_there_are(speakers: Speakers) -> None:
    with pytest.raises(CannotSpeakError, match="the voices are a, b, c"):
        speakers.take("d")
