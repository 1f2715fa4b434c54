"""The parts of a worker, wired once by ``worker.service`` and handed to each assignment."""

from collections.abc import Mapping

import msgspec

from voicefleet.schemas.keys import Keys
from voicefleet.schemas.request import Request
from voicefleet.worker.backlog import Backlog
from voicefleet.worker.clock import ServerClock
from voicefleet.worker.config import AudioConfig, WorkerConfig
from voicefleet.worker.ledger import Delivery, Ledger
from voicefleet.worker.loop_monitor import LoopMonitor
from voicefleet.worker.publisher import Publisher
from voicefleet.worker.rendition import read_request
from voicefleet.worker.residency import Residency
from voicefleet.worker.slots import Slots
from voicefleet.worker.stats import Stats
from voicefleet.worker.watch import KeyWatch


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
