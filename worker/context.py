"""The parts of a worker. ``worker.service`` builds them once; every job works with them."""

from collections.abc import Mapping

import msgspec

from voicefleet.schemas.keys import Keys
from voicefleet.schemas.request import Request
from voicefleet.worker.config.sections import AudioConfig, WorkerConfig
from voicefleet.worker.control.key_watch import KeyWatch
from voicefleet.worker.loop_monitor import LoopMonitor
from voicefleet.worker.models.pool import ModelPool
from voicefleet.worker.models.slots import Slots
from voicefleet.worker.publish.publisher import Publisher
from voicefleet.worker.stats import Stats
from voicefleet.worker.store.backlog import Backlog
from voicefleet.worker.store.clock import ServerClock
from voicefleet.worker.store.queues import Delivery, QueueStore
from voicefleet.worker.store.sessions import SessionStore
from voicefleet.worker.synthesis.prepared_turn import read_request


class WorkerContext(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of one worker; ``name`` is the worker's."""

    name: str
    keys: Keys
    config: WorkerConfig
    audio: AudioConfig
    clock: ServerClock
    loop: LoopMonitor
    queues: QueueStore
    sessions: SessionStore
    backlogs: Mapping[str, Backlog]
    watch: KeyWatch
    publisher: Publisher
    pool: ModelPool
    slots: Slots
    stats: Stats

    def read(self, delivery: Delivery) -> Request:
        """Decode a request, and check it against its model if that is in memory.

        Raises:
            InvalidRequest: It breaks the protocol, or asks for what the model does not offer.
        """
        info = self.pool.info(delivery.model)
        return read_request(delivery.entry, delivery.fields, info)
