"""What each server-side script does, on every server at hand."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, TypeVar

import anyio
import msgspec
import pytest
from redis.asyncio import Redis

from voicefleet.schemas.keys import BACKLOG, GROUP, ORPHANS, Keys
from voicefleet.worker.store.lease_states import Claim, Standing
from voicefleet.worker.store.scripts.queue import (
    UNANSWERED,
    Adopt,
    Earlier,
    Keep,
    Later,
    Orphan,
    Park,
    Promote,
    Settle,
    Take,
)
from voicefleet.worker.store.scripts.script import BacklogKeys, Call, OrderKeys, SessionKeys
from voicefleet.worker.store.scripts.session import (
    FENCED,
    FORGOTTEN,
    Abandon,
    Acquire,
    Append,
    Attempt,
    Enqueue,
    Finish,
    Mark,
    Release,
)
from voicefleet.worker.store.scripts.worker import Beat, Depart

pytestmark = [pytest.mark.anyio, pytest.mark.matrix]

T = TypeVar("T")
TTL_MS = 60_000
MODEL = "tone-test"
CONVERSATION_MS = 30_000


async def run(redis: Any, call: Call[T]) -> T:
    keys, args = call.key_list(), call.argv()
    return call.decode(await redis.eval(call.script.source, len(keys), *keys, *args))


class Session:
    """One session's keys, and calls of its scripts with defaults."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self.redis: Any = redis
        keys = Keys(prefix)
        self.keys = SessionKeys.of(keys, "s")
        self.lease, self.audio, self.state, self.spoken, self.refused = self.keys
        self.text, self.control = keys.text("s", "r"), keys.control("s")

    async def acquire(
        self,
        request: str = "r1",
        *earlier: str,
        entry: str = "1-0",
        claim: Claim = Claim.FRESH,
        worker: str = "w1",
        model: str = MODEL,
        least: int = 0,
        last_epoch: str = "",
        ticket: str = "",
    ) -> tuple[str, ...]:
        call = Acquire(
            keys=self.keys,
            claim=claim,
            request=request,
            entry=entry,
            model=model,
            worker=worker,
            ttl_ms=TTL_MS,
            least_turn=least,
            last_epoch=last_epoch,
            ticket=ticket or secrets.token_hex(4),
            earlier=earlier,
        )
        got = await run(self.redis, call)
        if not got.epoch:
            return (got.standing,)
        numbers = (str(number) for number in (got.turn, got.last, got.attempts))
        return (got.standing, got.epoch, *numbers, got.resume.decode())

    async def epoch(self, request: str = "r1", **options: Any) -> str:
        """Acquire a new turn and return its epoch."""
        status, epoch, *_ = await self.acquire(request, **options)
        assert status in (Standing.NEW, Standing.TAKEN_OVER, Standing.CRASH_SUSPECTED)
        return epoch

    async def append(
        self,
        epoch: str,
        n: int,
        *entries: tuple[str, ...],
        turn: int = 1,
        keep: int | None = None,
        resume: bytes = b"",
        record: Mapping[str, str] | None = None,
    ) -> int:
        call = Append(
            keys=self.keys,
            epoch=epoch,
            turn=turn,
            first=n,
            ttl_ms=TTL_MS,
            keep_entries=keep,
            resume=resume,
            record=record or {},
            entries=entries,
        )
        return await run(self.redis, call)

    async def finish(
        self, epoch: str, n: int, *, turn: int = 1, text: bool = False, reason: str = "completed"
    ) -> int:
        call = Finish(
            keys=self.keys,
            text=self.text if text else None,
            epoch=epoch,
            turn=turn,
            number=n,
            ttl_ms=TTL_MS,
            keep_entries=1000,
            end={"event": "end", "request": "r1", "reason": reason, "frames": n - 1},
        )
        return await run(self.redis, call)

    async def enqueue(self, request: str, entry: str, **options: Any) -> str:
        """Its standing."""
        return (await self.enqueued(request, entry, **options))[0]

    async def enqueued(
        self,
        request: str,
        entry: str,
        *,
        interrupt: bool = False,
        model: str = MODEL,
        most: int = 64,
        queue: OrderKeys | None = None,
        earlier: Sequence[str] = (),
    ) -> tuple[str, bool, bool]:
        """Its standing, whether it interrupts, whether the session is in conversation."""
        call = Enqueue(
            lease=self.lease,
            session=self.state,
            spoken=self.spoken,
            refused=self.refused,
            queue=queue,
            request=request,
            entry=entry,
            model=model,
            interrupts=interrupt,
            ttl_ms=TTL_MS,
            most=most,
            conversation_ms=CONVERSATION_MS,
            earlier=earlier,
        )
        got = await run(self.redis, call)
        return got.standing, got.interrupts, got.talks

    async def release(self, epoch: str, *, blameless: bool = True) -> bool:
        return await run(self.redis, Release(lease=self.lease, epoch=epoch, blameless=blameless))

    async def attempt(self, epoch: str, *, begins: bool) -> bool:
        return await run(self.redis, Attempt(lease=self.lease, epoch=epoch, begins=begins))

    async def abandon(self, entry: str = "1-0", worker: str = "w1") -> bool:
        call = Abandon(lease=self.lease, entry=entry, model=MODEL, owner=worker)
        return await run(self.redis, call)

    async def stream(self) -> list[tuple[str, dict[str, str]]]:
        return [
            (entry.decode(), {k.decode(): v.decode() for k, v in fields.items()})
            for entry, fields in await self.redis.xrange(self.audio)
        ]

    async def ids(self) -> list[str]:
        return [entry for entry, _ in await self.stream()]

    async def hash(self, key: str) -> dict[str, str]:
        fields = await self.redis.hgetall(key)
        return {name.decode(): value.decode() for name, value in fields.items()}

    async def speak(self, request: str = "r1", turn: int = 1, **options: Any) -> None:
        """A whole turn of one frame."""
        epoch = await self.epoch(request, **options)
        await self.append(epoch, 0, start(request), pcm(1), turn=turn)
        assert await self.finish(epoch, 2, turn=turn) == 2


def start(request: str = "r1") -> tuple[str, ...]:
    return ("event", "start", "request", request)


def pcm(n: int) -> tuple[str, ...]:
    return ("pcm", f"frame {n}")


@pytest.fixture
def session(redis: Redis, prefix: str) -> Session:
    return Session(redis, prefix)


class TestAcquire:
    async def test_new(self, session: Session) -> None:
        status, epoch, turn, last, attempts, resume = await session.acquire()
        assert (status, turn, last, attempts, resume) == (Standing.NEW, "1", "-1", "1", "")
        seconds, micros = await session.redis.time()
        assert 0 <= seconds * 1_000_000 + micros - int(epoch) < 60_000_000
        lease = await session.hash(session.lease)
        assert (lease["active"], lease["owner"], lease["request"]) == ("1", "w1", "r1")
        state = await session.hash(session.state)
        assert (state["state"], state["worker"], state["turn"]) == ("speaking", "w1", "1")

    async def test_turns_count_on(self, session: Session) -> None:
        for turn in (1, 2, 3):
            await session.speak(f"r{turn}", turn, entry=f"{turn}-0")
        assert await session.ids() == [f"{t}-{n}" for t in (1, 2, 3) for n in range(3)]

    async def test_turns_count_on_without_the_audio(self, session: Session) -> None:
        await session.speak()
        await session.redis.delete(session.audio)
        assert (await session.acquire("r2", entry="2-0"))[2] == "2"

    async def test_turns_count_on_without_the_lease(self, session: Session) -> None:
        await session.speak()
        await session.redis.delete(session.lease)
        assert (await session.acquire("r2", entry="2-0"))[2] == "2"

    async def test_the_caller_may_know_more_turns(self, session: Session) -> None:
        assert (await session.acquire(least=7))[2] == "7"

    async def test_every_acquisition_has_a_greater_epoch(self, session: Session) -> None:
        epochs = [int(await session.epoch())]
        epochs += [int(await session.epoch(claim=Claim.TAKE_OVER)) for _ in range(5)]
        assert epochs == sorted(set(epochs))

    async def test_take_over(self, session: Session) -> None:
        epoch = await session.epoch()
        await session.append(epoch, 0, start(), pcm(1), pcm(2), resume=b"[points]")
        status, _, turn, last, attempts, resume = await session.acquire(
            claim=Claim.TAKE_OVER, worker="w2"
        )
        assert (status, turn, last, resume) == (Standing.TAKEN_OVER, "1", "2", "[points]")
        assert attempts == "1"  # it got further
        assert (await session.hash(session.lease))["owner"] == "w2"

    async def test_take_over_without_progress_counts_attempts(self, session: Session) -> None:
        await session.epoch()
        for tried in (1, 2, 3):
            status, epoch, _, _, attempts, _ = await session.acquire(claim=Claim.TAKE_OVER)
            assert (status, attempts) == (Standing.CRASH_SUSPECTED, str(tried))
            await session.append(epoch, 0, start())  # opens the turn, and is not heard
            assert await session.attempt(epoch, begins=True) == 1
        epoch = (await session.acquire(claim=Claim.TAKE_OVER))[1]
        await session.append(epoch, 1, pcm(1))
        assert (await session.acquire(claim=Claim.TAKE_OVER))[4] == "1"
        assert (await session.acquire(claim=Claim.TAKE_OVER))[4] == "1"

    async def test_a_take_over_without_an_attempt_counts_nothing(self, session: Session) -> None:
        await session.epoch()
        for _ in range(5):
            assert (await session.acquire(claim=Claim.TAKE_OVER))[4] == "1"

    async def test_an_owner_that_is_alive_uncounts_its_attempt(self, session: Session) -> None:
        await session.epoch(worker="w1")
        for _ in range(5):
            epoch = (await session.acquire(claim=Claim.TAKE_OVER, worker="w2"))[1]
            await session.attempt(epoch, begins=True)
            assert await session.acquire(claim=Claim.INQUIRE_ALIVE, worker="w1") == (
                Standing.HELD_ELSEWHERE,
            )
        assert (await session.acquire(claim=Claim.TAKE_OVER))[4] == "1"

    async def test_attempts_that_were_survived_do_not_count(self, session: Session) -> None:
        await session.epoch()
        for _ in range(5):
            epoch = (await session.acquire(claim=Claim.TAKE_OVER))[1]
            assert await session.attempt(epoch, begins=True) == 1
            assert await session.attempt(epoch, begins=False) == 1
        assert (await session.acquire(claim=Claim.TAKE_OVER))[4] == "0"
        assert await session.attempt(epoch, begins=True) == 0, "another's by now"

    async def test_held_elsewhere(self, session: Session) -> None:
        await session.epoch(worker="w1")
        assert await session.acquire(worker="w2") == (Standing.HELD_ELSEWHERE,)
        assert await session.acquire(worker="w2", claim=Claim.REGAIN) == (Standing.HELD_ELSEWHERE,)

    async def test_regain_continues_our_own_turn(self, session: Session) -> None:
        epoch = await session.epoch()
        await session.append(epoch, 0, start(), pcm(1), pcm(2))
        await session.redis.xtrim(session.audio, maxlen=0)
        status, _, turn, last, attempts, _ = await session.acquire(claim=Claim.REGAIN, least=1)
        assert (status, turn, last, attempts) == (Standing.TAKEN_OVER, "1", "-1", "1")

    async def test_regain_without_a_lease_continues_where_the_stream_ends(
        self, session: Session
    ) -> None:
        epoch = await session.epoch()
        await session.append(epoch, 0, start(), pcm(1), pcm(2))
        await session.redis.delete(session.lease)
        status, _, turn, last, *_ = await session.acquire(claim=Claim.REGAIN, least=1)
        assert (status, turn, last) == (Standing.TAKEN_OVER, "1", "2")

    async def test_regain_with_nothing_left_is_a_new_turn_of_the_same_number(
        self, session: Session
    ) -> None:
        epoch = await session.epoch()
        await session.append(epoch, 0, start(), pcm(1), pcm(2))
        await session.redis.delete(session.lease, session.audio)
        status, _, turn, last, *_ = await session.acquire(claim=Claim.REGAIN, least=1)
        assert (status, turn, last) == (Standing.NEW, "1", "-1")

    async def test_waits_while_another_is_spoken(self, session: Session) -> None:
        epoch = await session.epoch("r1")
        assert await session.acquire("r2", entry="2-0") == (Standing.WAITING,)
        await session.append(epoch, 0, start())
        await session.finish(epoch, 1)
        assert (await session.acquire("r2", entry="2-0"))[0] == Standing.NEW

    async def test_the_same_request_again_waits_for_its_end(self, session: Session) -> None:
        """It continues the turn, should that be lost."""
        epoch = await session.epoch("r1", entry="1-0")
        await session.append(epoch, 0, start(), pcm(1))
        assert await session.acquire("r1", entry="2-0") == (Standing.WAITING,)
        assert await session.enqueue("r1", "2-0", interrupt=True) == Standing.WAITING
        assert (await session.hash(session.lease))[f"w:2-0:{MODEL}"] == ".r1"
        assert await session.enqueue("r1", "3-0", most=1) == Standing.ALREADY_ANSWERED, (
            "that is no reason to refuse it"
        )
        await session.finish(epoch, 2)
        assert await session.acquire("r1", entry="2-0") == (Standing.ALREADY_ANSWERED,)
        assert (await session.hash(session.state))["state"] == "idle"

    async def test_the_same_request_again_continues_an_abandoned_turn(
        self, session: Session
    ) -> None:
        epoch = await session.epoch("r1", entry="1-0")
        await session.append(epoch, 0, start(), pcm(1))
        await session.enqueue("r1", "2-0")
        await session.abandon()
        status, _, turn, last, *_ = await session.acquire("r1", entry="2-0")
        assert (status, turn, last) == (Standing.TAKEN_OVER, "1", "1")

    async def test_waits_while_an_earlier_one_is_still_in_the_queue(self, session: Session) -> None:
        assert await session.acquire("r2", "r1", entry="2-0") == (Standing.WAITING,)
        await session.speak("r1", entry="1-0")
        assert (await session.acquire("r2", "r1", entry="2-0"))[0] == Standing.NEW

    @pytest.mark.parametrize(
        ("waits", "model", "status"),
        [
            ("1-0", "zzz", Standing.WAITING),
            ("2-0", "aaa", Standing.WAITING),
            ("2-0", "zzz", Standing.NEW),
            ("2-1", "aaa", Standing.NEW),
            ("10-0", "aaa", Standing.NEW),
        ],
    )
    async def test_waits_while_an_older_one_waits_in_any_queue(
        self, session: Session, waits: str, model: str, status: str
    ) -> None:
        await session.enqueue("other", waits, model=model)
        assert (await session.acquire("r2", entry="2-0"))[0] == status

    async def test_already_answered(self, session: Session) -> None:
        await session.speak()
        await session.enqueue("r9", "9-0")
        assert await session.acquire(entry="2-0") == (Standing.ALREADY_ANSWERED,)
        assert await session.acquire(entry="1-0", claim=Claim.TAKE_OVER) == (
            Standing.ALREADY_ANSWERED,
        )
        # One that waits under a name that was taken does not wait any more.
        await session.redis.hset(session.lease, f"w:3-0:{MODEL}", ".r1")
        assert await session.acquire(entry="3-0") == (Standing.ALREADY_ANSWERED,)
        assert [f for f in await session.hash(session.lease) if f[0] == "w"] == [f"w:9-0:{MODEL}"]

    async def test_a_thousand_names_are_remembered(self, session: Session) -> None:
        await session.redis.zadd(session.spoken, {f"old{n}": 0 for n in range(2000)})
        await session.speak()
        assert await session.redis.zcard(session.spoken) == 1024
        assert await session.redis.zscore(session.spoken, "r1") == 1

    async def test_a_lost_lease_leaves_the_turn_to_its_own_request(self, session: Session) -> None:
        epoch = await session.epoch()
        await session.append(epoch, 0, start(), pcm(1))
        await session.redis.delete(session.lease)
        status, _, turn, last, *_ = await session.acquire(claim=Claim.TAKE_OVER)
        assert (status, turn, last) == (Standing.TAKEN_OVER, "1", "1")

    async def test_a_lost_lease_has_its_turn_ended_before_the_next(self, session: Session) -> None:
        epoch = await session.epoch()
        await session.append(epoch, 0, start(), pcm(1))
        await session.redis.delete(session.lease)
        status, _, turn, last, *_ = await session.acquire("r2", entry="2-0")
        assert (status, turn, last) == (Standing.NEW, "2", "-1")
        entry, end = (await session.stream())[-1]
        assert entry == "1-2"
        assert end.pop("t").isdecimal()
        assert end == {
            "event": "end",
            "request": "r1",
            "reason": "failed",
            "frames": "1",
            "error": "lease_lost",
        }
        assert await session.append(epoch, 2, pcm(2)) == FENCED

    async def test_a_lost_lease_is_left_to_its_owner_while_the_request_is_queued(
        self, session: Session
    ) -> None:
        epoch = await session.epoch()
        await session.append(epoch, 0, start(), pcm(1))
        await session.redis.delete(session.lease)
        assert await session.acquire("r2", "r1", entry="2-0") == (Standing.WAITING,)
        assert (await session.acquire("r1", claim=Claim.REGAIN, least=1))[:1] == (
            Standing.TAKEN_OVER,
        )

    async def test_keys_of_another_type_are_deleted(self, session: Session) -> None:
        for key in (session.lease, session.state, session.spoken, session.audio):
            await session.redis.set(key, "of another type", ex=60)
        assert (await session.acquire())[0] == Standing.NEW

    async def test_a_key_in_place_of_the_audio_is_deleted_during_a_turn(
        self, session: Session
    ) -> None:
        epoch = await session.epoch()
        await session.append(epoch, 0, start(), pcm(1))
        await session.redis.set(session.audio, "of another type", ex=60)
        assert await session.append(epoch, 2, pcm(2)) == -1  # it is to be sent from the start
        await session.append(epoch, 0, start(), pcm(1), pcm(2))
        await session.redis.set(session.audio, "of another type", ex=60)
        assert await session.finish(epoch, 3) == -1
        assert not await session.redis.exists(session.audio)


class TestAcquireAgain:
    """A worker whose turn the server has forgotten, or whose grant had no reply."""

    async def test_a_lease_granted_without_a_reply_is_ours(self, session: Session) -> None:
        await session.acquire("r1")
        status, _, turn, last, attempts, _ = await session.acquire("r1")
        assert (status, turn, last, attempts) == (Standing.TAKEN_OVER, "1", "-1", "1")
        assert (await session.acquire("r1", worker="w2"))[0] == Standing.HELD_ELSEWHERE

    async def test_a_copy_of_the_same_call_changes_nothing(self, session: Session) -> None:
        await session.acquire("r1", worker="w1")
        over = {"worker": "w2", "claim": Claim.TAKE_OVER, "ticket": "t2"}
        status, *first = await session.acquire("r1", **over)
        assert (status, first[3]) == (Standing.CRASH_SUSPECTED, "1")
        assert await session.acquire("r1", **over) == (Standing.CRASH_SUSPECTED, *first)

    async def test_a_turn_that_another_has_ended_is_already_answered(
        self, session: Session
    ) -> None:
        forgotten = await session.epoch("r1", worker="w1")
        await session.redis.delete(*session.keys)
        await session.speak("r1", worker="w2")
        again = {"claim": Claim.REGAIN, "least": 1, "last_epoch": forgotten}
        assert (await session.acquire("r1", **again))[0] == Standing.ALREADY_ANSWERED
        await session.speak("r2", turn=2, entry="2-0")
        assert (await session.acquire("r1", **again))[0] == Standing.ALREADY_ANSWERED

    async def test_an_older_lease_than_ours_does_not_keep_us_from_regaining(
        self, session: Session
    ) -> None:
        await session.acquire("r1", worker="w1")
        before = await session.redis.dump(session.lease)
        ours = await session.epoch("r1", worker="w2", claim=Claim.TAKE_OVER)
        await session.redis.restore(session.lease, 0, before, replace=True)
        assert await session.append(ours, 0, start()) == FORGOTTEN
        again = {"claim": Claim.REGAIN, "least": 1, "last_epoch": ours}
        assert (await session.acquire("r1", worker="w2", **again))[0] == Standing.TAKEN_OVER

    async def test_an_inquiry_takes_nothing(self, session: Session) -> None:
        await session.acquire("r1", worker="w2")
        fenced = {"worker": "w1", "claim": Claim.INQUIRE}
        assert await session.acquire("r1", **fenced) == (Standing.HELD_ELSEWHERE,)
        assert await session.acquire("r2", entry="2-0", **fenced) == (Standing.WAITING,)
        await session.abandon(worker="w2")
        assert await session.acquire("r2", entry="2-0", **fenced) == (Standing.WAITING,)
        await session.speak("r3", turn=2, entry="3-0")
        assert await session.acquire("r3", entry="3-0", **fenced) == (Standing.ALREADY_ANSWERED,)


class TestAppend:
    async def test_writes_explicit_ids(self, session: Session) -> None:
        epoch = await session.epoch()
        assert await session.append(epoch, 0, start(), pcm(1)) == 1
        assert await session.append(epoch, 2, ("pcm", "x", "text", "Hello.")) == 2
        assert await session.ids() == ["1-0", "1-1", "1-2"]
        assert (await session.stream())[2][1] == {"pcm": "x", "text": "Hello."}

    async def test_again_writes_nothing_twice(self, session: Session) -> None:
        epoch = await session.epoch()
        for _ in range(3):
            assert await session.append(epoch, 0, start(), pcm(1), pcm(2)) == 2
        assert await session.append(epoch, 1, ("pcm", "other"), pcm(2), pcm(3)) == 3
        assert await session.ids() == ["1-0", "1-1", "1-2", "1-3"]
        assert (await session.stream())[1][1] == {"pcm": "frame 1"}

    async def test_a_gap_is_refused(self, session: Session) -> None:
        epoch = await session.epoch()
        assert await session.append(epoch, 1, pcm(1)) == -1
        await session.append(epoch, 0, start())
        assert await session.append(epoch, 2, pcm(2)) == 0
        assert await session.ids() == ["1-0"]

    async def test_after_another_turn_begins_at_its_own_start(self, session: Session) -> None:
        await session.speak()
        epoch = await session.epoch("r2", entry="2-0")
        assert await session.append(epoch, 1, pcm(1), turn=2) == -1
        assert await session.append(epoch, 0, start("r2"), pcm(1), turn=2) == 1

    async def test_a_stale_owner_is_fenced_off(self, session: Session) -> None:
        old = await session.epoch(worker="w1")
        new = await session.epoch(worker="w2", claim=Claim.TAKE_OVER)
        assert await session.append(old, 0, start()) == FENCED
        assert await session.ids() == []
        assert await session.append(new, 0, start()) == 0

    async def test_a_forgotten_lease_says_so(self, session: Session) -> None:
        epoch = await session.epoch()
        await session.redis.delete(session.lease)
        assert await session.append(epoch, 0, start()) == FORGOTTEN
        assert not await session.redis.exists(session.audio)

    async def test_keeps_keys_and_window_and_record(self, session: Session) -> None:
        epoch = await session.epoch()
        for key in session.keys:
            await session.redis.pexpire(key, 5000)
        frames = [pcm(n) for n in range(1, 1000)]
        for at in range(0, 999, 111):
            entries = [start(), *frames[:111]] if at == 0 else frames[at : at + 111]
            await session.append(epoch, at + (at > 0), *entries)
        record = {"frames": "999", "state": "paused"}
        assert await session.append(epoch, 1000, keep=300, record=record, resume=b"[x]") == 999
        assert 300 <= await session.redis.xlen(session.audio) < 600
        state = await session.hash(session.state)
        assert (state["frames"], state["state"]) == ("999", "paused")
        assert (await session.hash(session.lease))["resume"] == "[x]"
        for key in session.keys[:4]:  # nobody was refused
            assert await session.redis.pttl(key) > 5000

    async def test_a_key_in_place_of_the_record_does_not_stop_it(self, session: Session) -> None:
        epoch = await session.epoch()
        await session.redis.set(session.state, "of another type", ex=60)
        assert await session.append(epoch, 0, start(), record={"state": "paused"}) == 0


class TestFinish:
    async def test_writes_the_end_and_the_state(self, session: Session) -> None:
        epoch = await session.epoch()
        await session.append(epoch, 0, start(), pcm(1), resume=b"[x]")
        assert await session.finish(epoch, 2) == 2
        entry, end = (await session.stream())[-1]
        assert (entry, end["event"], end["frames"]) == ("1-2", "end", "1")
        lease = await session.hash(session.lease)
        assert lease["active"] == "0"
        assert not {"resume", "owner"} & lease.keys()
        state = await session.hash(session.state)
        assert (state["state"], state["frames"]) == ("idle", "1")

    async def test_again_replies_the_same(self, session: Session) -> None:
        epoch = await session.epoch()
        await session.append(epoch, 0, start())
        for _ in range(3):
            assert await session.finish(epoch, 1) == 1
        assert await session.ids() == ["1-0", "1-1"]

    async def test_of_an_unspoken_turn_is_number_one(self, session: Session) -> None:
        epoch = await session.epoch()
        assert await session.finish(epoch, 1, reason="rejected") == 1
        assert await session.finish(epoch, 1, reason="rejected") == 1
        assert await session.ids() == ["1-1"]

    async def test_with_entries_missing_is_refused(self, session: Session) -> None:
        epoch = await session.epoch()
        assert await session.finish(epoch, 5) == -1
        await session.append(epoch, 0, start(), pcm(1))
        assert await session.finish(epoch, 5) == 1
        assert await session.ids() == ["1-0", "1-1"]
        assert (await session.hash(session.lease))["active"] == "1"

    async def test_of_a_stale_owner_is_refused(self, session: Session) -> None:
        old = await session.epoch()
        await session.epoch(claim=Claim.TAKE_OVER, worker="w2")
        assert await session.finish(old, 1) == FENCED
        await session.redis.delete(session.lease)
        assert await session.finish(old, 1) == FORGOTTEN
        assert not await session.redis.exists(session.audio)

    @pytest.mark.parametrize("written", [True, False])
    async def test_empties_the_text_stream(self, session: Session, written: bool) -> None:
        if written:
            await session.redis.xadd(session.text, {"text": "x"})
        epoch = await session.epoch()
        await session.append(epoch, 0, start())
        await session.finish(epoch, 1, text=True)
        assert await session.redis.xlen(session.text) == 0
        # A client that writes on makes no key that stays.
        await session.redis.xadd(session.text, {"text": "x"})
        assert await session.redis.pttl(session.text) > 0

    async def test_leaves_the_session_queued_while_others_wait(self, session: Session) -> None:
        epoch = await session.epoch()
        await session.enqueue("r2", "2-0")
        await session.finish(epoch, 1)
        assert (await session.hash(session.state))["state"] == "queued"


class TestRelease:
    async def test_leaves_the_turn_to_the_next_owner(self, session: Session) -> None:
        epoch = await session.epoch()
        await session.append(epoch, 0, start(), pcm(1))
        assert await session.release(epoch) == 1
        assert await session.append(epoch, 2, pcm(2)) == FENCED
        assert "owner" not in await session.hash(session.lease)
        status, _, turn, last, attempts, _ = await session.acquire(
            claim=Claim.TAKE_OVER, worker="w2"
        )
        assert (status, turn, last, attempts) == (Standing.TAKEN_OVER, "1", "1", "1")

    @pytest.mark.parametrize(("blameless", "attempts"), [(True, "1"), (False, "2")])
    async def test_counts_against_the_request_or_not(
        self, session: Session, blameless: bool, attempts: str
    ) -> None:
        epoch = await session.epoch()
        await session.release(epoch, blameless=blameless)
        assert (await session.acquire(claim=Claim.TAKE_OVER))[4] == attempts

    async def test_of_a_stale_owner_does_nothing(self, session: Session) -> None:
        old = await session.epoch()
        new = await session.epoch(claim=Claim.TAKE_OVER, worker="w2")
        assert await session.release(old) == 0
        assert await session.release("1") == 0
        assert await session.append(new, 0, start()) == 0

    async def test_twice_counts_once(self, session: Session) -> None:
        epoch = await session.epoch()
        await session.release(epoch)
        assert await session.release(epoch) == 0
        assert (await session.acquire(claim=Claim.TAKE_OVER))[4] == "1"


async def test_a_key_in_place_of_the_lease_is_no_lease(session: Session) -> None:
    epoch = await session.epoch()
    await session.redis.set(session.lease, "of another type", ex=60)
    assert await session.append(epoch, 0, start()) == FORGOTTEN
    assert await session.finish(epoch, 1) == FORGOTTEN
    assert await session.release(epoch) == 0
    assert await session.abandon() == 0
    assert await session.ids() == []


class TestAbandon:
    async def test_gives_up_the_turn(self, session: Session) -> None:
        epoch = await session.epoch()
        assert await session.abandon() == 1
        assert await session.append(epoch, 0, start()) == FENCED
        assert (await session.hash(session.lease))["active"] == "0"
        assert await session.abandon() == 0

    async def test_gives_up_the_waiting(self, session: Session) -> None:
        await session.enqueue("r1", "1-0")
        await session.enqueue("r2", "2-0")
        await session.abandon()
        waiting = [f for f in await session.hash(session.lease) if f.startswith("w:")]
        assert waiting == [f"w:2-0:{MODEL}"]

    async def test_leaves_the_turns_of_others_alone(self, session: Session) -> None:
        epoch = await session.epoch(worker="w2")
        assert await session.abandon() == 0
        assert await session.append(epoch, 0, start()) == 0


class TestEnqueue:
    async def test_lists_the_request_and_whether_it_interrupts(self, session: Session) -> None:
        await session.epoch("r0", entry="5-0")
        assert await session.enqueue("r1", "10-0") == Standing.WAITING
        assert await session.enqueue("r2", "10-1") == Standing.WAITING
        assert await session.enqueue("r3", "9-5") == Standing.WAITING
        assert (
            await session.enqueue("r4", "100-0", model="other", interrupt=True) == Standing.WAITING
        )
        assert (
            await session.enqueue("r2", "10-1") == Standing.WAITING
        )  # again, and not beside itself
        lease = await session.hash(session.lease)
        assert lease["w:100-0:other"] == "!r4"
        assert lease[f"w:10-0:{MODEL}"] == ".r1"

    async def test_shows_a_session_that_nobody_speaks_as_queued(self, session: Session) -> None:
        await session.enqueue("r1", "1-0")
        assert (await session.hash(session.state))["state"] == "queued"
        await session.redis.delete(session.lease)
        epoch = await session.epoch("r1")
        await session.enqueue("r2", "2-0")
        assert (await session.hash(session.state))["state"] == "speaking"
        await session.finish(epoch, 1)

    async def test_a_name_that_was_answered_is_refused(self, session: Session) -> None:
        await session.speak()
        assert await session.enqueue("r1", "2-0") == Standing.ALREADY_ANSWERED
        assert not [f for f in await session.hash(session.lease) if f.startswith("w:")]

    async def test_the_turn_that_is_spoken_is_refused(self, session: Session) -> None:
        """A worker that was falsely declared dead comes late: its place would never be removed."""
        await session.acquire("r1", entry="1-0")
        assert await session.enqueue("r1", "1-0") == Standing.HELD_ELSEWHERE
        assert not [field for field in await session.hash(session.lease) if field[:2] == "w:"]

    async def test_a_session_is_idle_when_only_a_duplicate_waited(self, session: Session) -> None:
        epoch = await session.epoch("r1", entry="1-0")
        await session.enqueue("r2", "2-0")
        await session.finish(epoch, 1)
        assert (await session.hash(session.state))["state"] == "queued"
        await session.redis.zadd(session.spoken, {"r2": 1})
        assert await session.enqueue("r2", "2-0") == Standing.ALREADY_ANSWERED
        assert (await session.hash(session.state))["state"] == "idle"

    async def test_a_request_sent_twice_interrupts_once(self, session: Session) -> None:
        await session.epoch("r1", entry="1-0")
        for name, entry in (("r2", "2-0"), ("r3", "3-0"), ("r2", "4-0")):
            await session.enqueue(name, entry, interrupt=name == "r2")
        fields = await session.hash(session.lease)
        waiters = [fields[f"w:{n}-0:{MODEL}"] for n in (2, 3, 4)]
        assert waiters == ["!r2", ".r3", ".r2"]

    async def test_the_place_of_an_answered_request_is_removed(self, session: Session) -> None:
        await session.speak("r1", entry="1-0")
        await session.redis.hset(session.lease, f"w:1-0:{MODEL}", ".r1")
        assert (await session.acquire("r2", entry="2-0"))[0] == Standing.NEW
        assert f"w:1-0:{MODEL}" not in await session.hash(session.lease)

    async def test_a_granted_request_waits_no_longer(self, session: Session) -> None:
        await session.enqueue("r1", "1-0")
        await session.epoch("r1", entry="1-0")
        assert not [f for f in await session.hash(session.lease) if f.startswith("w:")]


class Queue:
    """One model's request stream, with its group and the keys beside it."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self.redis: Any = redis
        self.prefix = prefix
        self.keys = BacklogKeys.of(Keys(prefix), MODEL)
        self.key, self.wake, self.backlog, self.books, self.ranks = self.keys
        self.order_keys = OrderKeys.of(Keys(prefix), MODEL)
        self.order = self.order_keys.order

    async def add(
        self, session: str, request: str | None = None, count: int = 1, **fields: object
    ) -> list[str]:
        named = {} if request is None else {"request": request}
        fields = {"session": session, "text": "x", **named, **fields}
        return [(await self.redis.xadd(self.key, fields)).decode() for _ in range(count)]

    async def deliver(self, worker: str, count: int = 100) -> None:
        await self.redis.xreadgroup(GROUP, worker, {self.key: ">"}, count=count)

    async def pending(self, worker: str) -> list[str]:
        found = await self.redis.xpending_range(self.key, GROUP, "-", "+", 1000, worker)
        return [item["message_id"].decode() for item in found]

    async def orphan(self, owner: str, *entries: str) -> int:
        call = Orphan(requests=self.key, wake=self.wake, owner=owner, entries=entries)
        return await run(self.redis, call)

    async def take(self, worker: str) -> str | None:
        taken = await run(self.redis, Take(keys=self.keys, worker=worker))
        return taken and taken[0]

    async def park(self, worker: str, *entries: str) -> int:
        return await run(self.redis, Park(keys=self.keys, worker=worker, entries=entries))

    async def parked(
        self, session: str, request: str | None = None, count: int = 1, **fields: object
    ) -> list[str]:
        """Add requests, have them delivered and parked."""
        entries = await self.add(session, request, count, **fields)
        await self.deliver("parker", count)
        assert await self.park("parker", *entries) == count
        return entries

    async def promote(self, entry: str) -> int:
        return await run(self.redis, Promote(keys=self.keys, worker="parker", entry=entry))

    async def adopt(self, worker: str, entry: str) -> tuple[str, str] | None:
        """The claim and the entry."""
        taken = await run(self.redis, Adopt(keys=self.keys, worker=worker, entry=entry))
        return taken and (taken[2], taken[0])

    async def settle(self, entry: str, *answered_in: str) -> int:
        lease, spoken = answered_in or (None, None)
        call = Settle(
            queue=self.order_keys,
            lease=lease,
            spoken=spoken,
            entry=entry,
            model=MODEL,
            request="r1",
        )
        return await run(self.redis, call)

    async def earlier(self, entry: str, session: str) -> set[str]:
        call = Earlier(queue=self.order_keys, entry=entry, session=session)
        return set(await run(self.redis, call))

    async def later(self, entry: str, session: str, request: str) -> bool:
        call = Later(queue=self.order_keys, entry=entry, session=session, request=request)
        return await run(self.redis, call)

    async def deliveries(self, entry: str) -> int:
        (found,) = await self.redis.xpending_range(self.key, GROUP, entry, entry, 1)
        return found["times_delivered"]


@pytest.fixture
async def queue(redis: Redis, prefix: str) -> Queue:
    queue = Queue(redis, prefix)
    await queue.redis.xgroup_create(queue.key, GROUP, "0", mkstream=True)
    return queue


class TestOrphans:
    async def test_any_worker_may_take_what_was_handed_back(self, queue: Queue) -> None:
        entries = await queue.add("s", count=3)
        await queue.deliver("w1")
        assert await queue.orphan("w1", *entries[:2]) == 2
        assert await queue.pending("w1") == entries[2:]
        assert await queue.take("w2") == entries[0]
        assert await queue.take("w3") == entries[1]
        assert await queue.take("w2") is None
        assert await queue.pending("w2") == entries[:1]

    async def test_taking_counts_as_a_delivery_and_handing_back_does_not(
        self, queue: Queue
    ) -> None:
        (entry,) = await queue.add("s")
        await queue.deliver("w1")
        await queue.orphan("w1", entry)
        assert await queue.deliveries(entry) == 1
        await queue.take("w2")
        assert await queue.deliveries(entry) == 2

    async def test_only_what_is_the_owners_is_handed_back(self, queue: Queue) -> None:
        (entry,) = await queue.add("s")
        await queue.deliver("w1")
        assert await queue.orphan("w2", entry) == 0
        assert await queue.orphan("w1", "9-9") == 0
        assert await queue.pending("w1") == [entry]
        assert not await queue.redis.exists(queue.wake)

    async def test_all_requests_of_a_dead_worker_are_handed_back_and_it_is_removed(
        self, queue: Queue
    ) -> None:
        entries = await queue.add("s", count=250)
        await queue.deliver("w1", 249)
        await queue.deliver("w2", 1)
        assert await queue.orphan("w1") == 249
        names = {c["name"] for c in await queue.redis.xinfo_consumers(queue.key, GROUP)}
        assert names == {b"w2", ORPHANS.encode()}
        assert await queue.pending("w2") == entries[249:]
        assert await queue.orphan("w1") == 0

    async def test_idle_workers_are_woken(self, queue: Queue) -> None:
        (entry,) = await queue.add("s")
        await queue.deliver("w1")
        await queue.orphan("w1", entry)
        first = await queue.redis.get(queue.wake)
        assert first
        assert 0 < await queue.redis.pttl(queue.wake) <= 60_000
        await queue.take("w1")
        await anyio.sleep(0.001)
        await queue.orphan("w1", entry)
        assert await queue.redis.get(queue.wake) != first

    async def test_one_that_was_deleted_hides_no_other(self, queue: Queue) -> None:
        entries = await queue.add("s", count=4)
        await queue.deliver("w1")
        await queue.orphan("w1", *entries)
        await queue.redis.xdel(queue.key, *entries[:2])
        assert [await queue.take("w2") for _ in range(3)] == [*entries[2:], None]
        assert await queue.pending(ORPHANS) == []
        assert await queue.pending("w2") == entries[2:]


async def test_settle_removes_a_request(queue: Queue) -> None:
    entries = await queue.add("s", count=2)
    await queue.deliver("w1")
    for deleted in (1, 0):
        assert await queue.settle(entries[0]) == deleted
    assert await queue.pending("w1") == entries[1:]
    assert await queue.redis.xlen(queue.key) == 1


async def test_settle_leaves_a_request_whose_end_a_failover_forgot(
    queue: Queue, session: Session
) -> None:
    (entry,) = await queue.add("s", "r1")
    await queue.deliver("w1")
    epoch = await session.epoch("r1", entry=entry)
    answered_in = (session.lease, session.spoken)
    assert await queue.settle(entry, *answered_in) == UNANSWERED
    await session.finish(epoch, 1)
    forgotten = {key: await session.redis.dump(key) for key in answered_in}
    await session.redis.delete(*answered_in)
    assert await queue.settle(entry, *answered_in) == UNANSWERED
    assert await queue.pending("w1") == [entry]
    for key, value in forgotten.items():
        await session.redis.restore(key, 60_000, value)
    assert await queue.settle(entry, *answered_in) == 1


class TestPlaces:
    """Requests of the same session before an entry of the queue, and after it."""

    async def test_earlier_are_those_before_it(self, queue: Queue) -> None:
        (unnamed,) = await queue.add("s")
        await queue.add("other", "x")
        await queue.add("s", "r2")
        (mine,) = await queue.add("s", "r3")
        await queue.add("s", "r4")
        assert await queue.earlier(mine, "s") == {"r2", unnamed}

    async def test_later_is_one_after_it(self, queue: Queue) -> None:
        await queue.add("s", "r1")
        (mine,) = await queue.add("s", "r2")
        await queue.add("s", "r3")
        await queue.add("other", "r4")
        (unnamed,) = await queue.add("s")
        for name, found in {"r1": 0, "r2": 0, "r3": 1, "r4": 0, "r9": 0, unnamed: 1}.items():
            assert await queue.later(mine, "s", name) == found, name

    @pytest.mark.parametrize("between", [0, 200, 600])
    async def test_however_many_stand_between(self, queue: Queue, between: int) -> None:
        (first,) = await queue.add("s", "first")
        await queue.add("other", count=between)
        (last,) = await queue.add("s", "last")
        assert await queue.earlier(last, "s") == {"first"}
        assert await queue.later(first, "s", "last") == 1

    async def test_only_the_session_of_that_very_name_counts(self, queue: Queue) -> None:
        for session in ("s1", "s:1", "s-", "S", "t"):
            await queue.add(session, "r1")
        (mine,) = await queue.add("s", "r2")
        assert await queue.earlier(mine, "s") == set()

    async def test_settled_and_deleted_requests_do_not_count(self, queue: Queue) -> None:
        (settled,) = await queue.add("s", "r1")
        (deleted,) = await queue.add("s", "r2")
        (mine,) = await queue.add("s", "r3")
        assert await queue.earlier(mine, "s") == {"r1", "r2"}
        await queue.settle(settled)
        await queue.redis.xdel(queue.key, deleted)
        assert await queue.earlier(mine, "s") == set()
        await queue.settle(mine)
        # What remains says how far it was read.
        assert await queue.redis.zcard(queue.order) == 1

    async def test_a_lost_order_is_rebuilt(self, queue: Queue) -> None:
        (first,) = await queue.add("s", "r1")
        (mine,) = await queue.add("s", "r2")
        assert await queue.earlier(mine, "s") == {"r1"}
        await queue.redis.delete(queue.order)
        assert await queue.earlier(mine, "s") == {"r1"}
        await queue.add("s", "r3")
        assert await queue.later(first, "s", "r3") == 1
        assert await queue.redis.pttl(queue.order) > 0


class TestBacklog:
    """Requests that came while no slot was free, and which is next when one is."""

    async def test_one_tenant_is_served_in_order(self, queue: Queue) -> None:
        entries = await queue.parked("s", count=600)
        assert [await queue.take("w1") for _ in entries] == entries
        assert await queue.take("w1") is None
        assert await queue.pending("w1") == entries

    async def test_tenants_take_turns_however_much_one_asks_for(self, queue: Queue) -> None:
        greedy = await queue.parked("greedy:1", count=300)
        assert [await queue.take("w1") for _ in range(3)] == greedy[:3]
        modest = await queue.parked("modest:1", count=3)
        taken = [await queue.take("w1") for _ in range(7)]
        assert sorted(taken[:2]) == sorted([greedy[3], modest[0]])
        assert sorted(taken[2:4]) == sorted([greedy[4], modest[1]])
        assert set(taken) == {*greedy[3:7], *modest}

    async def test_a_tenant_gains_nothing_by_having_been_silent(self, queue: Queue) -> None:
        """Credit does not add up: a tenant that was silent is next once, not ten times."""
        busy = await queue.parked("busy:1", count=40)
        assert [await queue.take("w1") for _ in range(20)] == busy[:20]
        late = await queue.parked("late:1", count=10)
        taken = [await queue.take("w1") for _ in range(10)]
        assert len([entry for entry in taken if entry in late]) == 5

    async def test_sessions_without_a_tenant_are_one(self, queue: Queue) -> None:
        entries = [*await queue.parked("a"), *await queue.parked("b"), *await queue.parked("a")]
        (named,) = await queue.parked("t:a")
        assert [await queue.take("w1") for _ in range(4)] == [entries[0], named, *entries[1:]]

    async def test_what_was_handed_back_goes_first(self, queue: Queue) -> None:
        entries = await queue.parked("s", count=3)
        assert await queue.take("w1") == entries[0]
        await queue.orphan("w1", entries[0])
        assert [await queue.take("w2") for _ in range(3)] == entries

    async def test_says_whether_another_worker_had_it(self, queue: Queue) -> None:
        (entry,) = await queue.parked("s")
        for claim in (Claim.FRESH, Claim.TAKE_OVER):
            taken = await run(queue.redis, Take(keys=queue.keys, worker="w1"))
            assert taken == (entry, {b"session": b"s", b"text": b"x"}, claim)
            await queue.orphan("w1", entry)

    async def test_idle_workers_are_woken(self, queue: Queue) -> None:
        assert await queue.park("w1", "1-0") == 0
        assert not await queue.redis.exists(queue.wake), "nothing was parked"
        await queue.parked("s")
        assert await queue.redis.exists(queue.wake)

    async def test_only_the_workers_own_requests_are_parked(self, queue: Queue) -> None:
        (entry,) = await queue.add("s")
        await queue.deliver("w1")
        assert await queue.park("w2", entry) == 0
        assert await queue.pending("w1") == [entry]

    async def test_sessions_in_conversation_come_first(self, queue: Queue) -> None:
        entries = await queue.parked("s", count=3)
        talks = await queue.parked("talks", count=2)
        for entry in reversed(talks):
            assert await queue.promote(entry) == 1
        assert await queue.promote("9-9") == 0
        assert [await queue.take("w1") for _ in range(5)] == [*talks, *entries]

    async def test_conversation_does_not_outrank_other_tenants(self, queue: Queue) -> None:
        greedy = await queue.parked("greedy:1", count=4)
        modest = await queue.parked("modest:1", count=2)
        for entry in greedy[2:]:
            await queue.promote(entry)
        taken = [await queue.take("w1") for _ in range(6)]
        assert set(taken[:2]) == {greedy[2], modest[0]}
        assert set(taken[2:4]) == {greedy[3], modest[1]}
        assert taken[4:] == greedy[:2]

    async def test_a_promoted_request_that_was_taken_hides_no_other(self, queue: Queue) -> None:
        first, talks, last = await queue.parked("s", count=3)
        await queue.promote(talks)
        assert await queue.adopt("w2", talks) == (Claim.FRESH, talks)
        await queue.redis.zadd(queue.ranks, {f" 0 {'0' * 19}9-{'0' * 20}": 0})
        assert [await queue.take("w1") for _ in range(3)] == [first, last, None]

    async def test_any_one_can_be_adopted(self, queue: Queue) -> None:
        first, second, third = await queue.parked("s", count=3)
        assert await queue.adopt("w1", second) == (Claim.FRESH, second)
        assert await queue.adopt("w2", second) is None, "it is in another's hands"
        await queue.orphan("w1", second)
        assert await queue.adopt("w2", second) == (Claim.TAKE_OVER, second)
        assert [await queue.take("w1") for _ in range(3)] == [first, third, None]

    async def test_one_that_was_not_parked_cannot_be_adopted(self, queue: Queue) -> None:
        (entry,) = await queue.add("s")
        assert await queue.adopt("w1", entry) is None
        await queue.deliver("w1")
        assert await queue.adopt("w2", entry) is None
        assert await queue.pending("w1") == [entry]

    async def test_lost_books_are_rebuilt(self, queue: Queue) -> None:
        entries = await queue.parked("s", count=5)
        assert await queue.take("w1") == entries[0]
        await queue.redis.delete(queue.backlog, queue.books, queue.ranks)
        assert [await queue.take("w1") for _ in range(5)] == [*entries[1:], None]

    async def test_keys_of_another_type_are_deleted(self, queue: Queue) -> None:
        for key in (queue.backlog, queue.books, queue.ranks):
            await queue.redis.set(key, "of another type", ex=60)
        (entry,) = await queue.parked("s")
        assert await queue.take("w1") == entry

    async def test_one_that_was_deleted_hides_no_other(self, queue: Queue) -> None:
        entries = await queue.parked("s", count=4)
        await queue.take("w1")
        await queue.redis.xdel(queue.key, *entries[1:3])
        assert [await queue.take("w1"), await queue.take("w1")] == [entries[3], None]
        assert await queue.pending(BACKLOG) == []

    async def test_books_end_with_the_backlog_or_in_time(self, queue: Queue) -> None:
        await queue.parked("s", count=2)
        await queue.promote((await queue.pending(BACKLOG))[1])
        await queue.take("w1")
        await queue.promote((await queue.pending(BACKLOG))[0])
        for key in (queue.backlog, queue.books, queue.ranks):
            assert await queue.redis.pttl(key) > 0
        await queue.take("w1")
        await queue.take("w1")
        assert not await queue.redis.exists(queue.backlog, queue.books, queue.ranks)


async def test_one_worker_keeps_a_backlog(queue: Queue) -> None:
    key = Keys(queue.prefix).keeper(MODEL)

    async def keep(worker: str, ttl_ms: int = 60_000) -> bool:
        return await run(queue.redis, Keep(keeper=key, worker=worker, ttl_ms=ttl_ms))

    assert [await keep("w1"), await keep("w2"), await keep("w1")] == [1, 0, 1]
    assert await queue.redis.pttl(key) > 0
    assert [await keep("w2", 0), await keep("w2")] == [0, 0], "it is another's to give up"
    assert [await keep("w1", 0), await keep("w2")] == [0, 1]
    await queue.redis.delete(key)
    await queue.redis.rpush(key, "of another type")
    assert await keep("w3") == 1


class TestRefused:
    """More requests than may wait in a session are answered in order, though no worker waits."""

    async def fill(self, session: Session, places: int, refused: int) -> str:
        """A turn that is spoken, some that wait, some that may not; returns the turn's epoch."""
        epoch = await session.epoch("r1", entry="1-0")
        for n in range(2, 2 + places):
            assert await session.enqueue(f"r{n}", f"{n}-0", most=places) == Standing.WAITING
        for n in range(2 + places, 2 + places + refused):
            assert await session.enqueue(f"r{n}", f"{n}-0", most=places) == Standing.SESSION_FULL
        return epoch

    async def test_are_answered_when_all_before_them_are(self, session: Session) -> None:
        epoch = await self.fill(session, 2, 3)
        assert await session.finish(epoch, 1) == 1
        assert await session.ids() == ["1-1"]
        epoch = await session.epoch("r2", entry="2-0")
        assert await session.finish(epoch, 1, turn=2) == 1
        epoch = await session.epoch("r3", entry="3-0")
        assert await session.finish(epoch, 1, turn=3) == 1
        assert await session.ids() == [f"{turn}-1" for turn in range(1, 7)]
        _, end = (await session.stream())[3]
        assert end.pop("t").isdigit()
        assert end == {
            "event": "end",
            "request": "r4",
            "reason": "rejected",
            "frames": "0",
            "error": "max_waiting_turns: 2 requests wait in this session",
        }
        assert not await session.redis.exists(session.refused)
        await session.speak("r7", turn=7, entry="7-0")

    async def test_come_before_a_later_one(self, session: Session) -> None:
        epoch = await self.fill(session, 1, 1)
        assert await session.finish(epoch, 1) == 1
        status, _, turn, *_ = await session.acquire("r2", entry="2-0")
        assert (status, turn) == (Standing.NEW, "2")
        await session.abandon("2-0")
        assert (await session.acquire("r9", entry="9-0"))[2] == "4"
        assert (await session.stream())[-1][0] == "3-1"

    async def test_a_name_that_was_refused_is_taken(self, session: Session) -> None:
        await self.fill(session, 1, 1)
        assert await session.enqueue("r3", "9-0", most=1) == Standing.ALREADY_ANSWERED

    async def test_one_that_waits_is_not_refused_later(self, session: Session) -> None:
        await self.fill(session, 2, 0)
        assert await session.enqueue("r3", "3-0", most=1) == Standing.WAITING

    async def test_are_answered_in_the_order_of_their_entries(self, session: Session) -> None:
        epoch = await self.fill(session, 1, 0)
        for n in (5, 3, 9, 4):
            assert await session.enqueue(f"r{n}", f"{n}-0", most=1) == Standing.SESSION_FULL
        await session.finish(epoch, 1)
        epoch = await session.epoch("r2", entry="2-0")
        await session.finish(epoch, 1, turn=2)
        ends = [fields["request"] for _, fields in await session.stream()]
        assert ends[2:] == ["r3", "r4", "r5", "r9"]

    async def test_requests_still_in_the_queue_count_too(
        self, session: Session, queue: Queue
    ) -> None:
        """Whichever worker is faster, the first of them may wait and the last may not."""
        entries = [(await queue.add("s", f"r{n}"))[0] for n in range(1, 5)]
        await session.epoch("r1", entry=entries[0])
        for n, place in {
            4: Standing.SESSION_FULL,
            3: Standing.WAITING,
            2: Standing.WAITING,
        }.items():
            entry = entries[n - 1]
            assert await session.enqueue(f"r{n}", entry, most=2, queue=queue.order_keys) == place

    async def test_requests_of_a_queue_elsewhere_count_by_their_names(
        self, session: Session
    ) -> None:
        await session.epoch("r1", entry="1-0")
        await session.enqueue("r2", "2-0")
        earlier = ("r1", "r2", "r3")
        assert await session.enqueue("r4", "4-0", most=2, earlier=earlier) == Standing.SESSION_FULL
        assert await session.enqueue("r4b", "4-0", most=3, earlier=earlier) == Standing.WAITING

    async def test_a_flood_is_answered_to_a_limit(self, session: Session) -> None:
        epoch = await self.fill(session, 1, 1100)
        assert await session.redis.llen(session.refused) == 1000
        assert await session.redis.pttl(session.refused) > 0
        await session.finish(epoch, 1)
        epoch = await session.epoch("r2", entry="2-0")
        await session.finish(epoch, 1, turn=2)
        assert (await session.stream())[-1][0] == "1002-1"


class TestMark:
    """The owner's decisions about a turn's text."""

    async def mark(self, session: Session, epoch: str, after: str, entry: str) -> Any:
        call = Mark(
            lease=session.lease,
            text=session.text,
            epoch=epoch,
            after=after,
            entry=entry,
            fields={"settle": "1"},
        )
        return await run(session.redis, call)

    async def texts(self, session: Session) -> list[tuple[bytes, dict[bytes, bytes]]]:
        return await session.redis.xrange(session.text)

    async def test_it_is_added_behind_what_was_read(self, session: Session) -> None:
        epoch = await session.epoch()
        await session.redis.xadd(session.text, {"text": "One. "}, id="3-0")
        await session.redis.pexpire(session.text, 50_000)
        assert await self.mark(session, epoch, "3-0", "3-1") == 1
        assert (await self.texts(session))[1:] == [(b"3-1", {b"settle": b"1"})]
        assert 0 < await session.redis.pttl(session.text) <= 50_000, "the client's TTL stays"
        assert await self.mark(session, epoch, "3-0", "3-1") == 0, "sent again, it is there"
        await session.redis.xadd(session.text, {"text": "Two"}, id="4-0")
        assert len(await self.texts(session)) == 3

    async def test_text_that_came_in_between_prevents_it(self, session: Session) -> None:
        epoch = await session.epoch()
        for entry in ("3-0", "4-0"):
            await session.redis.xadd(session.text, {"text": "One. "}, id=entry)
        await session.redis.pexpire(session.text, TTL_MS)
        assert await self.mark(session, epoch, "3-0", "3-1") == 0
        assert await self.mark(session, epoch, "-", "0-1") == 0
        assert len(await self.texts(session)) == 2

    async def test_only_the_owner_decides_and_only_until_the_end(self, session: Session) -> None:
        old = await session.epoch()
        await session.redis.xadd(session.text, {"text": "One. "}, id="3-0")
        await session.redis.pexpire(session.text, TTL_MS)
        _, new, *_ = await session.acquire(claim=Claim.TAKE_OVER, worker="w2")
        assert await self.mark(session, old, "3-0", "3-1") == 0
        assert await session.finish(new, 1) == 1
        assert await self.mark(session, new, "3-0", "3-1") == 0
        await session.redis.delete(session.lease)
        assert await self.mark(session, new, "3-0", "3-1") == 0
        assert len(await self.texts(session)) == 1

    async def test_a_missing_key_is_not_created(self, session: Session) -> None:
        epoch = await session.epoch()
        for after, entry in (("-", "0-1"), ("3-0", "3-1")):
            assert await self.mark(session, epoch, after, entry) == -1
        assert not await session.redis.exists(session.text)

    async def test_without_a_free_id_it_cannot_be_added(self, session: Session) -> None:
        epoch, last = await session.epoch(), 2**64 - 1
        await session.redis.xadd(session.text, {"text": "One. "}, id=f"3-{last}")
        await session.redis.pexpire(session.text, TTL_MS)
        assert await self.mark(session, epoch, f"3-{last}", f"3-{last + 1}") == -1
        assert len(await self.texts(session)) == 1

    async def test_behind_a_deleted_entry_it_cannot_be_added(self, session: Session) -> None:
        epoch = await session.epoch()
        for entry in ("3-0", "4-0"):
            await session.redis.xadd(session.text, {"text": "One. "}, id=entry)
        await session.redis.pexpire(session.text, TTL_MS)
        await session.redis.xdel(session.text, "4-0")
        assert await self.mark(session, epoch, "3-0", "3-1") == -1


class TestBeat:
    @pytest.fixture
    def key(self, prefix: str) -> str:
        return Keys(prefix).worker("w1")

    async def beat(
        self, redis: Redis, key: str, instance: str, *fields: str, living_ms: int = 60_000
    ) -> int | None:
        call = Beat(
            record=key,
            instance=instance,
            ttl_ms=1500,
            living_ms=living_ms,
            merges=False,
            fields=dict(zip(fields[::2], fields[1::2], strict=True)),
        )
        return await run(redis, call)

    async def test_says_the_servers_time(self, redis: Any, key: str) -> None:
        now_ms = await self.beat(redis, key, "a", "state", "ready")
        assert now_ms is not None
        seconds, micros = await redis.time()
        assert abs(seconds * 1000 + micros / 1000 - now_ms) < 10_000
        record = await redis.hgetall(key)
        assert record == {
            b"instance": b"a",
            b"beat_ms": str(now_ms).encode(),
            b"state": b"ready",
        }
        assert 0 < await redis.pttl(key) <= 1500

    async def test_replaces_the_last_record(self, redis: Any, key: str) -> None:
        await self.beat(redis, key, "a", "state", "ready", "rtf", "0.1")
        await self.beat(redis, key, "a", "state", "draining")
        assert await redis.hget(key, "rtf") is None
        assert await redis.hget(key, "state") == b"draining"

    async def test_a_name_that_is_taken_is_refused(self, redis: Any, key: str) -> None:
        await self.beat(redis, key, "a", "state", "ready")
        assert await self.beat(redis, key, "b", "state", "starting") is None
        assert await redis.hget(key, "state") == b"ready"

    async def test_keys_of_another_type_are_deleted(self, redis: Any, key: str) -> None:
        await redis.set(key, "of another type", ex=60)
        assert await self.beat(redis, key, "a", "state", "ready")

    async def test_the_name_of_a_silent_worker_is_free(self, redis: Any, key: str) -> None:
        await self.beat(redis, key, "a", "state", "ready", "rtf", "0.1")
        assert await self.beat(redis, key, "b", "state", "starting", living_ms=0)
        assert await redis.hmget(key, "instance", "rtf") == [b"b", None]

    async def test_a_departing_worker_removes_only_its_own_record(
        self, redis: Any, key: str
    ) -> None:
        await self.beat(redis, key, "a", "state", "ready")
        assert await run(redis, Depart(record=key, instance="b")) == 0
        assert await redis.exists(key)
        assert await run(redis, Depart(record=key, instance="a")) == 1
        assert await run(redis, Depart(record=key, instance="a")) == 0
        assert await self.beat(redis, key, "b", "state", "ready")


async def test_a_server_that_forgot_the_scripts_learns_them_again(
    session: Session, redis: Redis
) -> None:
    await redis.script_flush()
    assert (await session.acquire())[0] == Standing.NEW


def calls(kind: type[Call[Any]] = Call) -> Iterator[type[Call[Any]]]:
    """Every kind of call that has a script."""
    for one in kind.__subclasses__():
        if hasattr(one, "script"):
            yield one
        yield from calls(one)


def value_of(field: msgspec.structs.FieldInfo) -> Any:
    """A value for a field of a call that says its name."""
    for group in (SessionKeys, OrderKeys, BacklogKeys):
        if field.type in (group, group | None):
            return group(*group._fields)
    kind = str(field.type)
    if "Mapping" in kind:
        return {f"{field.name}...": ""}
    if "Sequence[collections" in kind:
        return [[f"{field.name}..."]]
    return [f"{field.name}..."] if "Sequence" in kind else field.name


@pytest.mark.parametrize("kind", list(calls()), ids=lambda kind: kind.__name__)
async def test_a_scripts_header_names_the_fields_of_its_call(kind: type[Call[Any]]) -> None:
    folder = resources.files("voicefleet.worker.store").joinpath("lua")
    source = folder.joinpath(f"{kind.script.name}.lua").read_text()
    header = source[source.index("-- KEYS  ") : source.index("\n-- Returns")]
    keys, argv = header.removeprefix("-- KEYS  ").split("\n-- ARGV  ")
    call = kind(**{field.name: value_of(field) for field in msgspec.structs.fields(kind)})
    assert keys.split(", ") == list(call.key_list())
    names = [arg for arg in call.argv() if isinstance(arg, str) and arg]
    assert argv.replace("\n--      ", "").split(", ") == names


class TestConversation:
    async def test_a_session_talks_while_it_speaks_and_for_a_while_after(
        self, session: Session
    ) -> None:
        assert (await session.enqueued("r0", "1-0"))[2] is False
        epoch = await session.epoch("r0", entry="1-0")
        assert (await session.enqueued("r1", "2-0"))[2] is True
        await session.append(epoch, 0, ("event", "start"), ("pcm", "x"))
        await session.finish(epoch, 2)
        assert (await session.enqueued("r2", "3-0"))[2] is True
        await session.redis.hset(session.lease, "spoke_ms", "1000")
        assert (await session.enqueued("r3", "4-0"))[2] is False

    async def test_a_turn_that_ended_unspoken_is_none(self, session: Session) -> None:
        epoch = await session.epoch()
        await session.finish(epoch, 1)
        assert (await session.enqueued("r2", "2-0"))[2] is False
