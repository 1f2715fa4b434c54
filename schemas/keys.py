"""Names of every Redis key of the protocol.

All keys of one session carry the hash tag ``{<session>}``. All keys of one model's queue lie in the
slot of its request stream. So every server-side script touches one Cluster slot.
"""

import msgspec

GROUP = "workers"
"""The consumer group on every request stream."""

ORPHANS = "orphans"
"""Pseudo consumer that holds requests without an owner: handed back, or of a dead worker."""

BACKLOG = "backlog"
"""Pseudo consumer that holds requests that wait for a free slot."""


class Keys(msgspec.Struct, frozen=True):
    """Key names under one prefix (config ``redis.prefix``)."""

    prefix: str = "tts"

    def requests(self, model: str) -> str:
        """Job queue of one model (stream, group ``workers``)."""
        return f"{self.prefix}:requests:{model}"

    def text(self, session: str, request: str) -> str:
        """Text that arrives while its turn is being spoken (stream)."""
        return f"{self.prefix}:text:{{{session}}}:{request}"

    def control(self, session: str) -> str:
        """The session's control value: pause, resume, stop (string)."""
        return f"{self.prefix}:control:{{{session}}}"

    def audio(self, session: str) -> str:
        """The session's PCM frames (stream)."""
        return f"{self.prefix}:audio:{{{session}}}"

    def session(self, session: str) -> str:
        """The session's state, for people and orchestrators (hash)."""
        return f"{self.prefix}:session:{{{session}}}"

    def worker(self, name: str) -> str:
        """Capacity, load and heartbeat of one worker (hash with a TTL)."""
        return f"{self.prefix}:worker:{name}"

    @property
    def workers(self) -> str:
        """Worker names scored by their last heartbeat, unix ms in server time (sorted set)."""
        return f"{self.prefix}:workers"

    def model(self, model: str) -> str:
        """What a served model can do (hash with a TTL)."""
        return f"{self.prefix}:model:{model}"

    @property
    def dead(self) -> str:
        """Dead letters: requests that no worker may try again (stream)."""
        return f"{self.prefix}:dead"

    # Private to the workers; their layout is no part of the contract.

    def lease(self, session: str) -> str:
        """The session's lease: which turn is spoken, by whom, and which wait (hash, private)."""
        return f"{self.prefix}:lease:{{{session}}}"

    def spoken(self, session: str) -> str:
        """Names of the session's latest requests, scored by turn (sorted set, private)."""
        return f"{self.prefix}:spoken:{{{session}}}"

    def refused(self, session: str) -> str:
        """Requests refused because too many wait; each is answered in its order (list, private)."""
        return f"{self.prefix}:refused:{{{session}}}"

    # These live in the slot of the model's request stream.

    def wake(self, model: str) -> str:
        """Changes when a request waits for any worker, to wake idle ones (string, private)."""
        return f"{self.prefix}:wake:{{{self.requests(model)}}}"

    def order(self, model: str) -> str:
        """The session of each unfinished entry of the queue (sorted set, private)."""
        return f"{self.prefix}:order:{{{self.requests(model)}}}"

    def backlog(self, model: str) -> str:
        """Entries that wait for a slot, scored by their order of service (sorted set, private)."""
        return f"{self.prefix}:backlog:{{{self.requests(model)}}}"

    def books(self, model: str) -> str:
        """How much service each tenant of the backlog has had (hash, private)."""
        return f"{self.prefix}:books:{{{self.requests(model)}}}"

    def ranks(self, model: str) -> str:
        """Each tenant's entries of the backlog in their order of service (sorted set, private)."""
        return f"{self.prefix}:ranks:{{{self.requests(model)}}}"

    def keeper(self, model: str) -> str:
        """The worker that keeps the model's backlog (string, private)."""
        return f"{self.prefix}:keeper:{{{self.requests(model)}}}"
