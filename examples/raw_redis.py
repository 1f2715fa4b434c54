"""Speak a sentence with nothing but redis-py: what a client in any language does.

python examples/raw_redis.py [MODEL]      # writes raw_redis.wav

docs/protocol.md says what each key and field means.
"""

import os
import sys
import uuid
import wave
from typing import Any

import redis

URL = os.environ.get("VOICEFLEET_REDIS_URL", "redis://127.0.0.1:6399")
MODEL = sys.argv[1] if len(sys.argv) > 1 else "piper-en-joe"


def main() -> None:
    server: Any = redis.Redis.from_url(URL, protocol=2)
    session = f"raw-{uuid.uuid4().hex}"
    audio = f"tts:audio:{{{session}}}"
    server.xadd(f"tts:requests:{MODEL}", {"session": session, "text": "Hello from plain Redis."})
    last = "0"
    with wave.open("raw_redis.wav", "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(48_000)  # what a request gets that names no sample_rate
        while True:
            for _, entries in server.xread({audio: last}, block=4000):  # empty: nothing new in 4 s
                for entry_id, entry in entries:
                    last = entry_id
                    if b"pcm" in entry:
                        wav.writeframes(entry[b"pcm"])
                    elif entry[b"event"] == b"end":
                        print(f"raw_redis.wav: {entry[b'reason'].decode()}")
                        return


main()
