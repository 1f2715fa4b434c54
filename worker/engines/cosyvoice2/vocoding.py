"""The vocoder for all sequences: windows of many utterances in one batch."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.graphs import Graphs
from voicefleet.worker.engines.cosyvoice2.transfer import Transfer, to_device
from voicefleet.worker.engines.cosyvoice2.vocoder.model import Vocoder
from voicefleet.worker.engines.cosyvoice2.vocoder.noise import noise_offset
from voicefleet.worker.engines.cosyvoice2.vocoder.source import Cursor
from voicefleet.worker.engines.cosyvoice2.vocoder.stretch import Stretch, stretched_frames
from voicefleet.worker.engines.cosyvoice2.vocoder.windows import Window, Windows

WINDOW_LENGTHS = (56, 96)
"""In mel frames: the first for an utterance's first block, the second for all later ones."""

WHOLE = (0, 0)
"""The trim of a window that holds a whole utterance."""

Shape = tuple[int, int, tuple[int, int]]
"""A batch's rows, frames, and the frames trimmed at the left and the right."""


class Track:
    """One utterance's progress through the vocoder.

    Args:
        stage: The vocoder.
        first: Mel frames of the first block.
        hop: Mel frames of each later block.
        margin: Mel frames that are sure to follow any block but the last.
        speed: 2 speaks twice as fast.
        seed: The turn's seed; with ``number`` it selects the noise.
        number: The utterance's number in its turn.
    """

    def __init__(
        self,
        stage: "VocoderStage",
        *,
        first: int,
        hop: int,
        margin: int,
        speed: float,
        seed: int,
        number: int,
    ) -> None:
        sizes = stage.vocoder.sizes
        self.stretch = Stretch(speed)
        self.windows = Windows(
            sizes,
            first=max(1, stretched_frames(first, speed, final=False)),
            hops=(max(1, int(hop / speed)),),
            lengths=WINDOW_LENGTHS,
            margin=margin if speed == 1.0 else 1,
        )
        self.offset = noise_offset(seed, number)
        self.phase = torch.zeros(1, dtype=torch.float64, device=stage.device)
        # The frames from number ``base`` on, which later windows may need.
        self.mel = torch.zeros(0, sizes.mel_bands, device=stage.device)
        self.base = 0
        self.ended = False

    def push(self, mel: Tensor, final: bool) -> None:
        """Add mel frames ``[n, bands]``; ``final``: no more will come."""
        more = self.stretch.push(mel.float().T, final).T
        self.mel = torch.cat((self.mel, more))
        self.ended = final

    def next(self) -> Window | None:
        """The next window that can be rendered, if any."""
        return self.windows.next(self.base + len(self.mel), self.ended)

    def frames_of(self, window: Window) -> Tensor:
        """The window's frames ``[filled, bands]``."""
        return self.mel[window.start - self.base :][: window.filled]

    def forget(self) -> None:
        """Drop the frames that no later window needs."""
        oldest = self.windows.oldest
        if oldest > self.base:
            self.mel = self.mel[oldest - self.base :]
            self.base = oldest


@dataclass
class _Inputs:
    """Static input tensors of one batch shape.

    ``mel`` is float32 ``[rows, frames, bands]``, ``phase`` float64 ``[rows]``. ``places`` is int64
    ``[5, rows]``: noise offset, first frame, anchor, frame until which samples are kept, filled
    frames.
    """

    mel: Tensor
    places: Tensor
    phase: Tensor


@dataclass
class RenderedWindows:
    """Samples being copied to the host: ``pieces`` are (track, row, samples to keep)."""

    samples: Transfer
    pieces: list[tuple[Track, int, slice]] = field(default_factory=list[tuple[Track, int, slice]])


class VocoderStage:
    """Runs windows in batches.

    Args:
        vocoder: Ready to run.
        batches: Rows of a batch, ascending: one is padded to the next.
        graphs: Runs them.
    """

    def __init__(self, vocoder: Vocoder, batches: Sequence[int], graphs: Graphs) -> None:
        self.vocoder = vocoder
        self.device = next(vocoder.parameters()).device
        self._batches = tuple(batches)
        self._graphs = graphs
        self._inputs: dict[Shape, _Inputs] = {}

    def render(self, tracks: Sequence[Track]) -> list[RenderedWindows]:
        """Start rendering all windows of the tracks that can be; the order in a track is kept."""
        rendered: list[RenderedWindows] = []
        due = list(tracks)
        while due:
            alike: defaultdict[tuple[int, tuple[int, int]], list[tuple[Track, Window]]]
            alike = defaultdict(list)
            for track in due:
                window = track.next()
                if window is not None:
                    alike[window.frames, window.trim].append((track, window))
            largest = self._batches[-1]
            for windows in alike.values():
                batches = (windows[at : at + largest] for at in range(0, len(windows), largest))
                rendered += [self._batch(batch) for batch in batches]
            due = [track for windows in alike.values() for track, _ in windows]
        for track in tracks:
            track.forget()
        return rendered

    def warm_up(self) -> None:
        """Capture all shapes: first, middle, last and only windows."""
        left, right = self._trims()
        for rows in self._batches:
            for length in WINDOW_LENGTHS:
                for trim in ((0, right), (left, right), (left, 0), WHOLE):
                    self._prepare((rows, length, trim))

    def dry_run(self, rows: int) -> None:
        """Run one idle batch, to time it."""
        rows = next(size for size in self._batches if size >= rows)
        self._run((rows, WINDOW_LENGTHS[-1], self._trims()))

    def _trims(self) -> tuple[int, int]:
        """The trim of a window in the middle of an utterance."""
        return Windows(self.vocoder.sizes, lengths=WINDOW_LENGTHS).trim

    def _batch(self, windows: list[tuple[Track, Window]]) -> RenderedWindows:
        rows = next(size for size in self._batches if size >= len(windows))
        shape = rows, windows[0][1].frames, windows[0][1].trim
        self._prepare(shape)
        inputs = self._inputs_of(shape)
        places: list[list[int]] = []
        for row, (track, window) in enumerate(windows):
            inputs.mel[row, : window.filled] = track.frames_of(window)
            inputs.phase[row] = track.phase[0]
            places.append([track.offset, window.start, window.anchor, window.until, window.filled])
        columns = torch.tensor(places).T.contiguous()
        inputs.places[:, : len(windows)] = to_device(columns, self.device)
        samples, phase = self._run(shape)
        hop = self.vocoder.sizes.hop
        pieces: list[tuple[Track, int, slice]] = []
        for row, (track, window) in enumerate(windows):
            track.phase = phase[row : row + 1].clone()
            pieces.append((track, row, window.kept(hop)))
        return RenderedWindows(Transfer(samples), pieces)

    def _prepare(self, shape: Shape) -> None:
        self._graphs.prepare(("vocoder", shape), lambda: self._window(shape), _no_op)

    def _run(self, shape: Shape) -> tuple[Tensor, Tensor]:
        """Run one batch from its graph."""
        return self._graphs.run(("vocoder", shape), lambda: self._window(shape))

    def _window(self, shape: Shape) -> tuple[Tensor, Tensor]:
        inputs = self._inputs_of(shape)
        offset, first, anchor, until, filled = inputs.places
        cursor = Cursor(first, anchor, until, inputs.phase)
        ends = filled if shape[2] == WHOLE else None
        return self.vocoder.window(inputs.mel, offset, cursor, shape[2], ends)

    def _inputs_of(self, shape: Shape) -> _Inputs:
        inputs = self._inputs.get(shape)
        if inputs is None:
            rows, length, _ = shape
            bands = self.vocoder.sizes.mel_bands
            inputs = self._inputs[shape] = _Inputs(
                mel=torch.zeros(rows, length, bands, device=self.device),
                places=torch.zeros(5, rows, dtype=torch.int64, device=self.device),
                phase=torch.zeros(rows, dtype=torch.float64, device=self.device),
            )
        return inputs


def _no_op() -> None:
    """Inputs need no protection: a window changes nothing but its own output."""
