"""The fleet under faults: ``python -m verify chaos``.

Clients send requests to workers while a seeded schedule of faults is injected. A recorder reads
every entry of every audio stream, and a checker that shares no code with the workers compares it
with the protocol. The same seed gives the same requests and the same schedule.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from bench.testbed import ROOT, TONE
from verify.chaos import sabotage, topologies
from verify.chaos.checker import check
from verify.chaos.clock import library
from verify.chaos.injector import Injector
from verify.chaos.journal import Journal
from verify.chaos.kinds import Topology
from verify.chaos.network import Network
from verify.chaos.orchestrator import drive
from verify.chaos.plan import Plan
from verify.chaos.recorder import recording
from verify.chaos.records import Records
from verify.chaos.references import make_references
from verify.chaos.schedule import Schedule
from verify.chaos.servers import Servers
from verify.chaos.standalone import Standalone
from verify.chaos.utterances import Models
from verify.chaos.verdict import Verdict
from verify.chaos.workers import Workers, WorkerSpec
from verify.chaos.world import World
from voicefleet.schemas.keys import Keys
from voicefleet.worker.config.sections import WorkerConfig

if TYPE_CHECKING:
    from voicefleet.worker.voicepacks.voicepack import Voicepack

MODEL: Final = "tone-test"
READY_S: Final = 120.0
ANSWERED_S: Final = 120.0
"""How long after the expected end of a run requests may still be answered."""

SECONDS_A_TURN: Final = 4.0
"""About how long a session takes for one turn, with its waits."""

DRAIN_S: Final = 3.0
SYNTHESIS_S: Final = 2.0


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a run.

    ``seconds`` is the length of the schedule; of ``seconds`` and ``turns``, one is computed from
    the other. ``kinds`` are the faults to inject, all if empty. With ``slots`` 0, each worker can
    carry all sessions. ``cosyvoice`` is the number of workers with CosyVoice 2 of random weights.
    Journals and logs go to a new folder below ``runs`` (default: the temporary folder), which is
    deleted after a run without violations unless ``keep`` is set. ``server`` is the binary of
    another server than the bundled Valkey.
    """

    topology: Topology = "standalone"
    seed: int = 1
    seconds: float | None = None
    turns: int | None = None
    workers: int = 4
    sessions: int = 60
    kinds: tuple[str, ...] = ()
    heartbeat_ms: int | None = None
    dead_after_ms: int | None = None
    slots: int = 0
    cosyvoice: int = 0
    runs: Path | None = None
    keep: bool = False
    server: Path | None = None

    @property
    def schedule_s(self) -> float:
        """How long faults are injected."""
        if self.seconds is not None:
            return self.seconds
        return (self.turns or 1000) / self.sessions * SECONDS_A_TURN

    @property
    def turn_count(self) -> int:
        """How many turns are asked for."""
        if self.turns is not None:
            return self.turns
        return max(self.sessions, round(self.schedule_s / SECONDS_A_TURN * self.sessions))


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A run's verdict, and problems other than violations of the protocol.

    ``findings`` are exits and tracebacks that no fault explains, and faults that could not be
    injected or undone. ``directory`` holds the journals and the workers' logs, if they were kept.
    """

    verdict: Verdict
    schedule: Schedule
    findings: tuple[str, ...]
    seconds: float
    starts: dict[str, int]
    directory: Path | None

    @property
    def passed(self) -> bool:
        """Whether there was neither a violation nor a finding."""
        return not self.verdict.violations and not self.findings


def schedule_of(options: Options) -> Schedule:
    """The faults of a run. Raises ``UnknownKindError``."""
    return Schedule.make(options.seed, options.topology, options.schedule_s, options.kinds or None)


async def run(options: Options, say: Callable[[str], None] = print) -> Outcome:
    """One run, from the start of the servers to the verdict. ``say`` gets lines of progress.

    Raises:
        UnknownKindError: ``kinds`` names a fault that the topology does not know.
        RuntimeError: The fleet did not get ready.
    """
    schedule = schedule_of(options)
    directory = await anyio.to_thread.run_sync(_directory, options.runs)
    began = time.monotonic()
    findings, starts = await _run(options, schedule, directory, say)
    say("checking")
    verdict = await anyio.to_thread.run_sync(check, sorted(directory.glob("*.jsonl")))
    found = bool(verdict.violations or findings)
    kept = options.keep or found
    if not kept:
        shutil.rmtree(directory)
    return Outcome(
        verdict=verdict,
        schedule=schedule,
        findings=tuple(findings),
        seconds=time.monotonic() - began,
        starts=starts,
        directory=directory if kept else None,
    )


async def _run(
    options: Options, schedule: Schedule, directory: Path, say: Callable[[str], None]
) -> tuple[list[str], dict[str, int]]:
    """Run servers, workers, clients and faults; the journals are in ``directory`` then."""
    findings: list[str] = []
    pack = _cosyvoice_pack() if options.cosyvoice else None
    models = Models(
        main=MODEL,
        saboteur=sabotage.MODEL,
        others=(pack.model_id,) if pack else (),
        other_sessions=2,
    )
    plan = Plan.make(options.seed, options.sessions, options.turn_count, models)
    limit_s = max(options.schedule_s, plan.seconds) + ANSWERED_S
    async with AsyncExitStack() as stack:
        world_journal = stack.enter_context(Journal(directory / "world.jsonl"))
        clients_journal = stack.enter_context(Journal(directory / "clients.jsonl"))
        under = await stack.enter_async_context(
            topologies.start(options.topology, directory, options.server)
        )
        names = tuple(f"w{index}" for index in range(1, options.workers + 1))
        network = None
        if isinstance(under, Standalone):
            starting = Network.start(under.node.port, names)
            network = await stack.enter_async_context(starting)
        specs = _specs(options, names, under, network, directory, pack)
        jumps = any(one.kind == "clock_jump" for one in schedule.injections)
        fake_clocks = jumps and library() is not None
        workers = await stack.enter_async_context(
            Workers.start(specs, directory, fake_clocks=fake_clocks)
        )
        records = await stack.enter_async_context(Records.opened(under, Keys()))
        async with anyio.create_task_group() as background:
            world = World(
                servers=under,
                workers=workers,
                network=network,
                records=records,
                journal=world_journal,
                sessions=plan.sessions,
                background=background,
            )
            if not await world.all_ready(READY_S):
                raise RuntimeError(f"the workers did not get ready: see the logs in {directory}")
            say("references")
            await make_references(under.url, plan, clients_journal)
            say(f"{plan.turns} turns in {len(plan.sessions)} sessions, about {plan.seconds:.0f} s")
            injector = Injector(world, schedule, say)
            # Not those with CosyVoice 2, which take long to load.
            light = [worker for worker in workers if worker.name in names]
            background.start_soon(records.watch, light, world_journal)
            recorded = recording(under.url, plan.sessions, directory / "recorder.jsonl")
            async with recorded:
                answered = False
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(injector.run)
                    answered = await drive(
                        under.url, plan, clients_journal, until_answered_s=limit_s
                    )
                    tasks.cancel_scope.cancel()
                if not answered:
                    findings.append(f"not everything was answered within {limit_s:.0f} s")
                say("quiet")
                await world.all_ready()
                models_served = (models.main, sabotage.MODEL, *models.others)
                world_journal.write(await records.final_state(workers.names, models_served))
            findings += injector.findings
            background.cancel_scope.cancel()
    # After the block: all workers have ended by now.
    return findings + workers.findings, {one.name: one.starts for one in workers}


def _directory(runs: Path | None) -> Path:
    if runs is not None:
        runs.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="voicefleet-chaos-", dir=runs))


def _specs(
    options: Options,
    names: tuple[str, ...],
    under: Servers,
    network: Network | None,
    directory: Path,
    pack: "Voicepack | None",
) -> list[WorkerSpec]:
    folder = directory / "voicepacks"
    sabotage.write_voicepacks(folder, ROOT / "voicepacks")
    common = ["logging.format=json", f"worker.drain_timeout_s={DRAIN_S}"]
    if options.heartbeat_ms is not None:
        common.append(f"worker.heartbeat_ms={options.heartbeat_ms}")
    if options.dead_after_ms is not None:
        common.append(f"worker.dead_after_ms={options.dead_after_ms}")
    tone = [
        *common,
        f"worker.models={MODEL},{sabotage.MODEL}",
        f"model_manager.voicepacks_dir={folder}",
        f"model_manager.preload_model_ids={sabotage.MODEL}",
        f"engine.tone.slots={options.slots or options.sessions}",
    ]
    if "synthesis_timeout_s" in WorkerConfig.__struct_fields__:
        tone.append(f"worker.synthesis_timeout_s={SYNTHESIS_S}")
    specs = [
        WorkerSpec(
            name=name,
            url=network.url(name) if network else under.url,
            config=TONE,
            settings=tuple(tone),
        )
        for name in names
    ]
    if pack is not None:
        speech = (
            *common,
            f"worker.models={pack.model_id}",
            f"model_manager.voicepacks_dir={pack.directory.parent.parent}",
            f"model_manager.default_model_id={pack.model_id}",
            "engine.cosyvoice2.device=cpu",
            "engine.cosyvoice2.slots=4",
            "engine.cosyvoice2.threads=1",
        )
        config = ROOT / "configs/cosyvoice2.yaml"
        specs += [
            WorkerSpec(name=f"c{index}", url=under.url, config=config, settings=speech)
            for index in range(1, options.cosyvoice + 1)
        ]
    return specs


def _cosyvoice_pack() -> "Voicepack":
    from bench.cosyvoice.packs import pack_of

    return pack_of("tiny")
