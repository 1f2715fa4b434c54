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
    first, second = speakers.acquire("a"), speakers.acquire("a")
    assert first is second
    speakers.release(first)
    speakers.release(second)
    assert speakers.acquire("a") is first
    assert room.prepared == ["a"]


def test_the_one_unused_longest_makes_room(speakers: Speakers, room: Room) -> None:
    for name in ("a", "b", "a"):
        speakers.release(speakers.acquire(name))
    speakers.acquire("c")
    assert room.held == ["a", "c"]


def test_a_voice_in_use_stays(speakers: Speakers, room: Room) -> None:
    a = speakers.acquire("a")
    speakers.release(speakers.acquire("b"))
    speakers.acquire("c")
    assert room.held == ["a", "c"]
    with pytest.raises(CosyVoiceOOMError):
        speakers.acquire("b")
    speakers.release(a)
    speakers.acquire("b")
    assert room.held == ["c", "b"]


def test_an_unknown_voice_is_refused_with_those_there_are(speakers: Speakers) -> None:
    with pytest.raises(CannotSpeakError, match="the voices are a, b, c"):
        speakers.acquire("d")
