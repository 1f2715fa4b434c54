"""A reader that may be killed at any time, and resumes without a lost or doubled frame.

python examples/resume_reader.py [MODEL]      # kill it, and run it again

It writes resume_reader.pcm, and keeps its position in resume_reader.position: the id of the last
entry that it read, and the size of the audio up to there.
"""

import os
import sys
from pathlib import Path

import anyio

from voicefleet import End, Frame, VoiceFleet

URL = os.environ.get("VOICEFLEET_REDIS_URL", "redis://127.0.0.1:6399")
MODEL = sys.argv[1] if len(sys.argv) > 1 else "piper-en-joe"
AUDIO = Path("resume_reader.pcm")
POSITION = Path("resume_reader.position")
TEXT = "This announcement goes on for a while. " * 5


def load() -> tuple[str | None, int]:
    if not POSITION.exists():
        return None, 0
    entry, size = POSITION.read_text().split()
    return entry, int(size)


def save(entry: object, size: int) -> None:
    """Replace the file in one step: who reads it finds the old position or the new one."""
    new = POSITION.with_suffix(".new")
    new.write_text(f"{entry} {size}")
    new.replace(POSITION)


async def main() -> None:
    last, size = load()
    async with VoiceFleet(URL) as fleet:
        session = fleet.session("announcements", model=MODEL)
        # A request with a name is spoken once, however often it is sent.
        await session.speak(TEXT, request="monday").send()
        with AUDIO.open("ab") as audio:
            audio.truncate(size)  # drop a frame that was written after the position was saved
            async for entry in session.listen(after=last):
                if isinstance(entry, Frame):
                    audio.write(entry.pcm)
                    audio.flush()
                    size += len(entry.pcm)
                save(entry.id, size)
                if isinstance(entry, End):
                    print(f"{entry.reason} after {entry.frames} frames, resumed after {last}")
                    POSITION.unlink()
                    break


anyio.run(main)
