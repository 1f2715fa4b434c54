"""Interrupt an answer: the caller speaks up, and the session changes the subject at once.

python examples/barge_in.py [MODEL]
"""

import os
import sys
import time

import anyio

from voicefleet import VoiceFleet

URL = os.environ.get("VOICEFLEET_REDIS_URL", "redis://127.0.0.1:6399")
MODEL = sys.argv[1] if len(sys.argv) > 1 else "piper-en-joe"
LONG = "We have many offers this week. " * 10


async def main() -> None:
    async with VoiceFleet(URL) as fleet:
        session = fleet.session(model=MODEL)

        answer = session.speak(LONG)
        async for frame in answer:
            if frame.id.n == 50:  # after 1 s of audio the caller speaks up
                break
        # Here a player drops what it has buffered: frames come up to `lead_ms` ahead of real time.

        asked = time.monotonic()
        reply = session.speak("Sorry. What would you like to know?", interrupt=True)
        async for frame in reply:
            if frame.id.n == 1:
                print(f"reply heard after {(time.monotonic() - asked) * 1000:.0f} ms")
            if frame.id.n == 25:
                await reply.stop()  # the caller hangs up: end this turn too
        for name, turn in (("answer", answer), ("reply", reply)):
            end = await turn  # passes over frames that nobody wants any more
            print(f"{name}: {end.reason} after {end.frames} frames")


anyio.run(main)
