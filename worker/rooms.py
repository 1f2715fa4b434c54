"""The parts of a worker, wired once by ``worker.service`` and handed to each assignment."""

from collections.abc import Mapping

import msgspec

from schemas.keys import Keys
from schemas.request import Request
from worker.backlog import Backlog
from worker.clock import ServerClock
from worker.config import AudioConfig, WorkerConfig
from worker.ledger import Delivery, Ledger
from worker.loop_monitor import LoopMonitor
from worker.publisher import Publisher
from worker.rendition import read_request
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

    def read(self, delivery: Delivery) -> Request:
        """Read a request; one that its model cannot speak is invalid, while that is in memory.

        Raises:
            InvalidRequest: It is not what the protocol allows, or not what the model offers.
        """
        info = self.residency.info(delivery.model)
        return read_request(delivery.entry, delivery.fields, info)
