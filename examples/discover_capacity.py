"""Ask the fleet what it serves and how many more sessions it can take.

python examples/discover_capacity.py
"""

import os

import anyio

from voicefleet import VoiceFleet

URL = os.environ.get("VOICEFLEET_REDIS_URL", "redis://127.0.0.1:6399")


async def main() -> None:
    async with VoiceFleet(URL) as fleet:
        for worker in await fleet.workers():
            record = worker.record
            print(f"worker {worker.name}: {record.state}, {record.slots_total} slots")
        for model, record in (await fleet.models()).items():
            capacity = await fleet.capacity(model)
            print(f"model {model}: voices {', '.join(record.voices)}")
            print(f"  {capacity.slots_free} of {capacity.slots_total} slots are free")
            print(f"  {capacity.requests} requests are being spoken or wait")


anyio.run(main)
