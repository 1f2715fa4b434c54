"""Checks of one turn: its entries, header, samples and number."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from verify.chaos.evidence import Entry, Evidence, Request
from verify.chaos.reconstruction import Generation, History, Turn
from verify.chaos.verdict import Violation

FRAMES_PER_S: Final = 50
BYTES_PER_SAMPLE: Final = 2
HEADER: Final = {"frame_ms": "20", "format": "s16le", "channels": "1"}


def check_turns(session: str, history: History, evidence: Evidence) -> Iterator[Violation]:
    """Check every turn of a session in all generations, and the samples of turns lost later."""
    requests = evidence.requests[session]
    recorded = {
        turn.request for one in history.generations for turn in [*one.turns, *one.lost_turns]
    }
    unrecorded = len(evidence.answered[session] - recorded)
    for generation in history.generations:
        yield from _numbers(generation, history, unrecorded)
        for turn in generation.turns:
            yield from _shape(turn, generation)
        for turn in [*generation.turns, *generation.lost_turns]:
            request = requests.get(turn.request)
            if request is None:
                if turn.request:
                    yield _broken("asked", turn, f"no client added {turn.request}")
                continue
            yield from _header(turn, request)
            yield from _sound(turn, request, evidence)


def _broken(promise: str, turn: Turn, detail: str, entry: Entry | None = None) -> Violation:
    return Violation(
        promise=promise,
        session=turn.session,
        request=turn.request,
        turn=turn.number,
        at=(entry or turn.entries[0]).at,
        detail=detail,
    )


def _numbers(generation: Generation, history: History, unrecorded: int) -> Iterator[Violation]:
    """Turns count 1, 2, 3; ``reconstruction`` says how a new generation may begin.

    As many numbers may be left out as there are requests (``unrecorded``) whose end only the client
    read, because the server lost it at once.
    """
    at_loss: set[int] = set()
    if generation.number and not generation.expired:
        before = [turn for one in history.generations[: generation.number] for turn in one.turns]
        at_loss = {one for turn in before[-1:] for one in (turn.number, turn.number + 1)}
    forgotten = {lost.number for lost in generation.lost_turns}
    last = 0
    for turn in generation.turns:
        left_out = set(range(last + 1, turn.number)) - forgotten
        if turn.number not in at_loss and left_out and len(left_out) <= unrecorded:
            unrecorded -= len(left_out)
        elif (left_out or turn.number <= last) and turn.number not in at_loss:
            yield _broken("turns dense", turn, f"turn {turn.number} comes after turn {last}")
        last = turn.number


def _shape(turn: Turn, generation: Generation) -> Iterator[Violation]:
    """One start, frames without a gap, one end, nothing after it."""
    entries, numbers = turn.entries, [entry.id.n for entry in turn.entries]
    starts = [entry for entry in entries if entry.kind == "start"]
    ends = [entry for entry in entries if entry.kind == "end"]
    unspoken = not starts and len(entries) == 1 and bool(ends)
    if unspoken:
        if numbers != [1]:
            yield _broken("one end", turn, f"an unspoken turn ends at {entries[0].id}")
    else:
        if len(starts) != 1 or entries[0].kind != "start" or numbers[0] != 0:
            first = f"{entries[0].id} is a {entries[0].kind}"
            yield _broken("one start", turn, f"{len(starts)} starts, {first}")
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            gap = next(b for a, b in pairwise(numbers) if b != a + 1)
            yield _broken("dense", turn, f"before {turn.number}-{gap} entries are missing")
    for entry in entries:
        if entry.kind == "other":
            yield _broken("known", turn, f"{entry.id} is neither frame nor start nor end", entry)
    # The turn that was being spoken when a server lost everything has no end.
    if not ends and (generation.is_last or turn is not generation.turns[-1]):
        yield _broken("one end", turn, "it has no end", entries[-1])
    if len(ends) > 1:
        yield _broken("one end", turn, f"{len(ends)} ends", ends[1])
    for end in ends[:1]:
        behind = [entry for entry in entries if entry.id > end.id]
        if behind:
            said = f"{len(behind)} entries after the end {end.id}"
            yield _broken("nothing after", turn, said, behind[0])
        frames = sum(entry.kind == "frame" for entry in entries if entry.id < end.id)
        if end.fields.get("frames") != str(frames):
            said = f"the end says {end.fields.get('frames')} frames, there are {frames}"
            yield _broken("frames counted", turn, said, end)
        named = {entry.fields.get("request") for entry in [*starts, *ends]}
        if len(named) > 1 or not all(named):
            yield _broken("header", turn, f"start and end name {named}", end)
        if not end.fields.get("t", "").isdecimal():
            yield _broken("header", turn, "the end has no time", end)


def _header(turn: Turn, request: Request) -> Iterator[Violation]:
    """The start entry says what was asked for."""
    start = turn.start
    if start is None:
        return
    wanted = HEADER | {
        "request": request.name,
        "model": request.asked.model,
        "sample_rate": request.field.get("sample_rate", "48000"),
    }
    if "voice" in request.field:
        wanted["voice"] = request.field["voice"]
    wrong = {k: start.fields.get(k) for k, v in wanted.items() if start.fields.get(k) != v}
    wrong |= {k: None for k in ("voice", "worker") if not start.fields.get(k)}
    if not start.fields.get("t", "").isdecimal():
        wrong["t"] = start.fields.get("t")
    if wrong:
        yield _broken("header", turn, f"the start says {wrong}", start)


def _sound(turn: Turn, request: Request, evidence: Evidence) -> Iterator[Violation]:
    """Frames have the right size, and the samples and texts of the reference."""
    said = "" if turn.start is None else turn.start.fields.get("sample_rate", "")
    rate = int(said) if said.isdecimal() else 0
    size = rate // FRAMES_PER_S * BYTES_PER_SAMPLE
    frames = turn.frames
    wrong = next((frame for frame in frames if rate and frame.size != size), None)
    if wrong is not None:
        yield _broken("frame size", turn, f"{wrong.id} has {wrong.size} bytes, not {size}", wrong)
    reference = evidence.references.get(request.asked.utterance)
    if reference is None:
        if frames and not request.sabotage:
            yield _broken("samples", turn, "there is no reference for it")
        return
    for frame in frames:
        index = frame.id.n - 1
        if not 0 <= index < len(reference.digests):
            said = f"{frame.id} is past the reference's {len(reference.digests)} frames"
            yield _broken("samples", turn, said, frame)
            return
        if frame.digest != reference.digests[index]:
            yield _broken("samples", turn, f"{frame.id} has other samples", frame)
            return
        if frame.fields.get("text") != reference.texts[index]:
            yield _broken("texts", turn, f"{frame.id} has another text", frame)
            return
    if turn.reason == "completed" and len(frames) != len(reference.digests):
        # Only a part of a lost turn may be known.
        whole = turn.start is not None
        if whole:
            said = f"completed with {len(frames)} of {len(reference.digests)} frames"
            yield _broken("samples", turn, said, turn.end)
