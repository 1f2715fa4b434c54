"""The parts of a worker, wired once by ``worker.service`` and handed to each assignment."""

import msgspec

from schemas.keys import Keys
from worker.clock import ServerClock
from worker.config import AudioConfig, WorkerConfig
from worker.ledger import Ledger
from worker.publisher import Publisher
from worker.residency import Residency
from worker.slots import Slots
from worker.stats import Stats
from worker.watch import KeyWatch


class Rooms(msgspec.Struct, frozen=True, kw_only=True):
    """What an assignment works with; ``name`` is the worker's."""

    name: str
    keys: Keys
    config: WorkerConfig
    audio: AudioConfig
    clock: ServerClock
    ledger: Ledger
    watch: KeyWatch
    publisher: Publisher
    residency: Residency
    slots: Slots
    stats: Stats
