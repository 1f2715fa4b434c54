"""Measures a decode step, a flow block and a vocoder window by the number of sequences in a batch.

The engine's parts are measured outside its loop. ``apart`` computes each row alone, as the engine
does on a CPU so that a row's samples do not depend on its batch. ``together`` computes a real
batch, as on a GPU.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import numpy as np
import torch

from bench.cosyvoice.operations import Operations, count
from voicefleet.worker.engines.cosyvoice2 import budget
from voicefleet.worker.engines.cosyvoice2.devices import DTYPES
from voicefleet.worker.engines.cosyvoice2.family import CosyVoice2Config
from voicefleet.worker.engines.cosyvoice2.flow.blocks import BlockRenderer
from voicefleet.worker.engines.cosyvoice2.graphs import Graphs
from voicefleet.worker.engines.cosyvoice2.lm import sampling
from voicefleet.worker.engines.cosyvoice2.lm.decoding import Decoder
from voicefleet.worker.engines.cosyvoice2.pack import checkpoint, model_yaml
from voicefleet.worker.engines.cosyvoice2.rendering import BlockStage
from voicefleet.worker.engines.cosyvoice2.vocoding import WINDOW_LENGTHS, VocoderStage
from voicefleet.worker.voicepacks.voicepack import Voicepack

PROMPT: Final = 120
"""KV cache positions before the measured steps: prompt and text."""

STEPS: Final = 16
PAGES: Final = 8
"""Blocks in the context of a block, its own included: 8 s of prompt and speech."""


class Batching:
    """The parts of one model on one device."""

    def __init__(
        self, pack: Voicepack, device: str, dtype: str, graphs: bool, repeats: int
    ) -> None:
        self._device = torch.device(device)
        self._dtype = DTYPES[dtype]
        self._sizes = model_yaml.read(pack.directory / "cosyvoice2.yaml")
        self._model = checkpoint.load(pack.directory, self._sizes, self._dtype, self._device)
        self._graphs = graphs and self._device.type == "cuda"
        self._repeats = repeats

    @torch.inference_mode()
    def decode(self, slots: Sequence[int]) -> list[dict[str, float]]:
        """A step's ms and tokens a second, with so many slots, all of them taken."""
        return [self._decode(count_) for count_ in slots]

    def _decode(self, count_: int) -> dict[str, float]:
        # One decoder at a time: a graph that is freed also frees libraries' workspaces, which
        # another one may use.
        decoder = self._decoder(count_)
        self._fill(decoder)
        done = 0

        def steps() -> None:
            nonlocal done
            done += STEPS
            decoder.multi_step(dict.fromkeys(range(count_), done), STEPS)
            decoder.collect()

        step_s = self._time(steps) / STEPS
        return {"rows": count_, "ms": 1000 * step_s, "per_second": count_ / step_s}

    @torch.inference_mode()
    def flow(self, rows: Sequence[int], *, rows_apart: bool) -> list[dict[str, float]]:
        """A block's ms and seconds of audio a second, in batches of so many rows."""
        renderer = self._renderer(rows_apart)
        points: list[dict[str, float]] = []
        for count_ in rows:
            seconds = self._time(lambda c=count_: self._block(renderer, c, rows_apart))
            audio_s = count_ * self._sizes.flow.encoder.chunk / self._sizes.token_rate
            points.append({"rows": count_, "ms": 1000 * seconds, "per_second": audio_s / seconds})
        return points

    @torch.inference_mode()
    def vocoder(self, rows: Sequence[int], *, rows_apart: bool) -> list[dict[str, float]]:
        """A window's ms and seconds of audio a second, in batches of so many rows."""
        self._model.vocoder.rows_apart = rows_apart
        points: list[dict[str, float]] = []
        for count_ in rows:
            stage = VocoderStage(self._model.vocoder, (count_,), Graphs(enabled=self._graphs))
            stage.warm_up()
            seconds = self._time(lambda s=stage, c=count_: s.dry_run(c))
            left, right = stage._trims()
            frames = WINDOW_LENGTHS[-1] - left - right
            audio_s = count_ * frames * self._sizes.vocoder.hop / self._sizes.sample_rate
            points.append({"rows": count_, "ms": 1000 * seconds, "per_second": audio_s / seconds})
        self._model.vocoder.rows_apart = True
        return points

    @torch.inference_mode()
    def operations(self, rows: int) -> dict[str, Operations]:
        """Operations that a step, a block and a window of ``rows`` sessions start."""
        decoder = self._decoder(rows, graphs=False)
        self._fill(decoder)
        renderer = self._renderer(rows_apart=False)
        self._model.vocoder.rows_apart = False
        stage = VocoderStage(self._model.vocoder, (rows,), Graphs(enabled=False))
        stage.dry_run(rows)
        found = {
            "decode step": count(decoder.dry_run),
            "flow block": count(lambda: self._block(renderer, rows, False)),
            "vocoder window": count(lambda: stage.dry_run(rows)),
        }
        self._model.vocoder.rows_apart = True
        return found

    @torch.inference_mode()
    def captured(self, rows: int) -> Iterator[tuple[str, Callable[[], object]]]:
        """What runs one step, block and window of ``rows`` sessions, from its graph if it has one.

        One after another: each is gone when the next is made.
        """
        decoder = self._decoder(rows)
        self._fill(decoder)
        yield "decode step", decoder.dry_run
        del decoder
        yield "flow block", partial(self._block, self._renderer(rows_apart=False), rows, False)
        self._model.vocoder.rows_apart = False
        stage = VocoderStage(self._model.vocoder, (rows,), Graphs(enabled=self._graphs))
        stage.warm_up()
        yield "vocoder window", lambda: stage.dry_run(rows)
        self._model.vocoder.rows_apart = True

    @torch.inference_mode()
    def time_of(self, work: Callable[[], object]) -> float:
        """The median of a few runs of ``work``, in seconds."""
        return self._time(work)

    def _decoder(self, slots: int, graphs: bool | None = None) -> Decoder:
        enabled = self._graphs if graphs is None else graphs
        return Decoder(
            self._model.language_model, slots, 1024, budget.MAX_TOKENS, Graphs(enabled=enabled)
        )

    def _fill(self, decoder: Decoder) -> None:
        """Start an utterance without an end token in every slot."""
        width = self._sizes.language_model.width
        for slot in range(decoder.slots):
            decoder.begin(slot, sampling.draws(slot, 0, budget.MAX_TOKENS))
            decoder.constrain(slot, min_tokens=budget.MAX_TOKENS, banned=(True, True, True))
            prompt = torch.randn(PROMPT, width, device=self._device, dtype=self._dtype)
            decoder.prefill(slot, prompt)

    def _renderer(self, rows_apart: bool) -> BlockRenderer:
        renderer = BlockRenderer(
            self._model.flow, pages=PAGES, states=2, max_blocks=PAGES, rows_apart=rows_apart
        )
        if self._graphs:
            # The stage is what runs a renderer from graphs.
            vocoder = VocoderStage(self._model.vocoder, (1,), Graphs(enabled=False))
            BlockStage(renderer, vocoder, (1,), Graphs(enabled=True))
        return renderer

    def _block(self, renderer: BlockRenderer, rows: int, apart: bool) -> None:
        times, batch = (rows, 1) if apart else (1, rows)
        run = renderer.run or renderer.step
        for _ in range(times):
            run(renderer.inputs(batch, PAGES))

    def _time(self, work: Callable[[], object]) -> float:
        """The median of a few runs, in seconds."""
        times: list[float] = []
        work()
        for _ in range(self._repeats):
            begun = time.perf_counter()
            work()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            times.append(time.perf_counter() - begun)
        return float(np.median(times))


@contextmanager
def threads(count_: int) -> Iterator[None]:
    """Use ``count_`` CPU threads in this context; 0: leave the number as it is."""
    before = torch.get_num_threads()
    if count_:
        torch.set_num_threads(count_)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(
    pack: Voicepack,
    config: CosyVoice2Config,
    rows: Sequence[int],
    device: str,
    dtype: str,
    repeats: int,
) -> dict[str, Any]:
    """Measure everything, as points to plot."""
    with threads(config.threads):
        parts = Batching(pack, device, dtype, config.cuda_graphs != "off", repeats)
        apart = (False, True) if device == "cpu" else (False,)
        found: dict[str, Any] = {"decode": parts.decode(rows)}
        for way in apart:
            name = "apart" if way else "together"
            found[f"flow, {name}"] = parts.flow(rows, rows_apart=way)
            found[f"vocoder, {name}"] = parts.vocoder(rows, rows_apart=way)
        one, many = parts.operations(1), parts.operations(rows[-1])
    found["operations"] = {"1": one, f"{rows[-1]}": many}
    return found
