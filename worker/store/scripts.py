"""The server-side scripts: one ``.lua`` file each, called by digest.

Every key is declared in KEYS and lies in one Cluster slot. All of them may run twice: that is
what makes a retry after a lost reply harmless.
"""

import hashlib
from collections.abc import Sequence
from importlib import resources

from voicefleet.wire.link import Argument, Command, Reply, ReplyError
from voicefleet.wire.router import Router


class Script:
    """One script of ``worker/store/lua``; its header says what KEYS, ARGV and the reply are.

    ``after`` names files that stand before it, with what several scripts share.
    """

    def __init__(self, name: str, *, after: Sequence[str] = ()) -> None:
        self.name = name
        folder = resources.files("voicefleet.worker.store").joinpath("lua")
        parts = (folder.joinpath(f"{part}.lua") for part in (*after, name))
        self.source = "".join(part.read_text("utf-8") for part in parts)
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def command(self, keys: Sequence[str], args: Sequence[Argument]) -> Command:
        """The EVALSHA command, for a link; the server may not know the script (NOSCRIPT)."""
        return ["EVALSHA", self.sha, len(keys), *keys, *args]

    async def __call__(self, router: Router, keys: Sequence[str], *args: Argument) -> Reply:
        """Run it, loading it first where the server does not know it.

        Waits and raises as ``Router.call``.
        """
        tail = (len(keys), *keys, *args)
        try:
            return await router.call(keys[0], "EVALSHA", self.sha, *tail)
        except ReplyError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
            return await router.call(keys[0], "EVAL", self.source, *tail)

    async def on_queue(self, router: Router, keys: Sequence[str], *args: Argument) -> Reply:
        """Run it; ``None`` where the queue is gone, or something else stands in its place."""
        try:
            return await self(router, keys, *args)
        except ReplyError as error:
            if not str(error).startswith(("NOGROUP", "WRONGTYPE")):
                raise
            return None


ABANDON = Script("abandon")
ACQUIRE = Script("acquire", after=["entry", "place", "queue", "refused"])
ADOPT = Script("adopt", after=["backlog"])
APPEND = Script("append", after=["entry", "fence"])
ATTEMPT = Script("attempt")
BEAT = Script("beat")
DEPART = Script("depart")
EARLIER = Script("earlier", after=["entry", "queue"])
ENQUEUE = Script("enqueue", after=["entry", "place", "queue", "refused"])
FINISH = Script("finish", after=["entry", "fence", "refused"])
KEEP = Script("keep")
LATER = Script("later", after=["entry", "queue"])
MARK = Script("mark", after=["entry", "fence"])
ORPHAN = Script("orphan")
PARK = Script("park", after=["backlog"])
PROMOTE = Script("promote", after=["backlog"])
RELEASE = Script("release")
SETTLE = Script("settle", after=["entry", "queue"])
TAKE = Script("take", after=["backlog"])
