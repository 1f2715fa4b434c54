"""Speak an LLM's answer while it is being generated.

python examples/stream_llm.py [MODEL]      # writes stream_llm.wav
"""

import os
import re
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio

from voicefleet import VoiceFleet, WavWriter

URL = os.environ.get("VOICEFLEET_REDIS_URL", "redis://127.0.0.1:6399")
MODEL = sys.argv[1] if len(sys.argv) > 1 else "piper-en-joe"
ANSWER = (
    "Your parcel left the warehouse this morning. It should be with you tomorrow before noon. "
    "If nobody is at home, the driver leaves it with a neighbour."
)


async def tokens(prompt: str) -> AsyncGenerator[str]:
    """Stand-in for an LLM: 20 tokens a second. Your client goes here, for instance::

    stream = await openai.chat.completions.create(
        model="...", messages=[{"role": "user", "content": prompt}], stream=True
    )
    async for chunk in stream:
        yield chunk.choices[0].delta.content or ""
    """
    for token in re.findall(r"\s*\w{1,5}|.", ANSWER):
        await anyio.sleep(0.05)
        yield token


async def main() -> None:
    async with VoiceFleet(URL) as fleet:
        session = fleet.session(model=MODEL)
        begun = time.monotonic()

        async def timed() -> AsyncGenerator[str]:
            async for token in tokens("Where is my parcel?"):
                yield token
            print(f"last token after {time.monotonic() - begun:.2f} s")

        # Tokens need not be words or sentences: the worker finds the sentences.
        turn = session.speak(timed())
        with Path("stream_llm.wav").open("wb") as file, WavWriter(file, 48_000) as wav:
            async for frame in turn:
                if frame.id.n == 1:
                    print(f"first frame after {time.monotonic() - begun:.2f} s")
                wav.write(frame.pcm)
    print(f"stream_llm.wav: {wav.seconds:.2f} s")


anyio.run(main)
