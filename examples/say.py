"""Speak a sentence into a WAV file.

python examples/say.py [MODEL]      # writes say.wav
"""

import os
import sys
from pathlib import Path

import anyio

from voicefleet import VoiceFleet, WavWriter

URL = os.environ.get("VOICEFLEET_REDIS_URL", "redis://127.0.0.1:6399")
MODEL = sys.argv[1] if len(sys.argv) > 1 else "piper-en-joe"
SAMPLE_RATE = 48_000


async def main() -> None:
    async with VoiceFleet(URL) as fleet:
        turn = fleet.speak("Hello from the fleet.", model=MODEL, sample_rate=SAMPLE_RATE)
        with Path("say.wav").open("wb") as file, WavWriter(file, SAMPLE_RATE) as wav:
            async for frame in turn:  # each is 20 ms of mono 16-bit PCM
                wav.write(frame.pcm)
        end = await turn
    print(f"say.wav: {wav.seconds:.2f} s, {end.reason}")


anyio.run(main)
