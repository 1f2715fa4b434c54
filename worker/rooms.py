"""The parts of a worker, wired once by ``worker.service`` and handed to each assignment."""

from collections.abc import Mapping

import msgspec

from schemas.keys import Keys
from worker.backlog import Backlog
from worker.clock import ServerClock
from worker.config import AudioConfig, WorkerConfig
from worker.ledger import Ledger
from worker.loop_monitor import LoopMonitor
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
    loop: LoopMonitor
    ledger: Ledger
    backlogs: Mapping[str, Backlog]
    watch: KeyWatch
    publisher: Publisher
    residency: Residency
    slots: Slots
    stats: Stats
