"""Plans the vocoder's windows: which one to render next, and which of its samples to keep.

The plan depends on the utterance alone, never on when its frames arrive, so that a worker that
takes a turn over makes the same samples.
"""

from dataclasses import dataclass
from functools import cache
from math import prod
from typing import NamedTuple

from voicefleet.worker.engines.cosyvoice2.hyperparameters import VocoderSizes
from voicefleet.worker.engines.cosyvoice2.vocoder.f0 import LAYERS


@dataclass(frozen=True, slots=True)
class Window:
    """A window; frame numbers count from the utterance's start.

    Attributes:
        start: Its first frame.
        frames: Its length in frames.
        filled: How many of its first frames are the utterance's; the others are padding, which may
            hold any finite values.
        anchor: The first frame whose samples are kept; the carried phase holds before it.
        until: The frame after the last one that is kept; the phase before it is carried on.
        final: Whether it is the utterance's last window.
        trim: Frames on its two sides that are not computed beyond the network's first level.
    """

    start: int
    frames: int
    filled: int
    anchor: int
    until: int
    final: bool
    trim: tuple[int, int]

    @property
    def whole(self) -> bool:
        """Whether it holds the whole utterance; the vocoder then needs ``filled``."""
        return self.final and self.start == 0

    def kept(self, hop: int) -> slice:
        """The samples to keep of those that ``Vocoder.window`` returns (without trimmed frames)."""
        first = self.start + self.trim[0]
        return slice((self.anchor - first) * hop, (self.until - first) * hop)


class ReceptiveField(NamedTuple):
    """How many frames before and after a frame its samples depend on.

    ``late_left`` and ``late_right``: through the levels after the first alone.
    """

    left: int
    right: int
    late_left: int
    late_right: int


class Windows:
    """The windows of one utterance.

    Args:
        sizes: The vocoder's sizes.
        first: The frame at which the first window ends.
        hops: The following windows end ``hops[0]``, ``hops[1]``, ... frames later; the last hop
            repeats. Each is shortened to what fits a window.
        lengths: The lengths that windows can have; there are graphs for these alone. A window
            starts further back to get one of them, or is padded after its end at the utterance's
            start.
        margin: How many frames are sure to follow those that came before ``final``: the flow's
            look-ahead. A window end with fewer frames after it is left out. 1 is always safe.
        context: How many frames are computed to the left and right of the kept ones: by default
            the network's receptive field. A window withholds the right one.

    Raises:
        ValueError: ``context`` is less than the pitch predictor's receptive field of 5 frames, so
            that a wrong phase would be carried on.
    """

    def __init__(
        self,
        sizes: VocoderSizes,
        first: int = 50,
        hops: tuple[int, ...] = (50,),
        lengths: tuple[int, ...] = (56, 96),
        margin: int = 6,
        context: tuple[int, int] | None = None,
    ) -> None:
        left, right, late_left, late_right = receptive_field(sizes)
        self._left, self._right = context or (left, right)
        if min(self._left, self._right) < LAYERS:
            raise ValueError(f"a window needs at least {LAYERS} frames of context on each side")
        self._trim = max(0, self._left - late_left), max(0, self._right - late_right)
        self._lengths = tuple(sorted(lengths))
        # The last window has up to ``margin - 1`` frames more than a hop.
        widest = self._lengths[-1] - margin + 1
        self._hops = tuple(min(hop, widest - self._left - self._right) for hop in hops)
        self._margin = margin
        self._ends = 0
        self._end = min(first, widest)
        self._emitted = 0
        self._done = False

    @property
    def trim(self) -> tuple[int, int]:
        """The trim of a window that holds neither end of the utterance."""
        return self._trim

    @property
    def oldest(self) -> int:
        """The oldest frame that a later window may need."""
        history = max(self._left, self._lengths[-1] - self._right)
        return max(0, self._emitted - history)

    def next(self, frames: int, final: bool) -> Window | None:
        """The next window, if ``frames`` frames are enough for one; ``final``: no more will come.

        Call it until it returns ``None``.
        """
        while not self._done and frames >= self._end + (self._margin if final else 0):
            end = self._end
            self._end += self._hops[min(self._ends, len(self._hops) - 1)]
            self._ends += 1
            if end - self._right > self._emitted:
                return self._window(end, end - self._right, final=False)
        if final and not self._done:
            self._done = True
            if frames > self._emitted:
                return self._window(frames, frames, final=True)
        return None

    def _window(self, end: int, until: int, final: bool) -> Window:
        anchor, self._emitted = self._emitted, until
        start = max(0, anchor - self._left)
        length = next(n for n in self._lengths if n >= end - start)
        start = max(0, end - length)
        filled = end - start
        # Nothing is trimmed at the utterance's own ends.
        trim = self._trim[0] if start else 0, 0 if final else self._trim[1]
        return Window(start, length, filled, anchor, until, final, trim)


@cache
def receptive_field(sizes: VocoderSizes) -> ReceptiveField:
    """The network's receptive field: 20 frames to the left and 21 to the right as published.

    Computed by walking back through the layers with the range of inputs that a frame's samples
    need. The path through the pitch is the widest; mel frames alone need 14 on either side.
    """
    frame = 1000  # far from any edge
    low, high = frame * sizes.hop, (frame + 1) * sizes.hop - 1
    half = sizes.fft // 2
    low, high = -((sizes.fft - 1 - half - low) // sizes.fft_hop), (high + half) // sizes.fft_hop
    low, high = low - 3, high + 3  # conv_post
    source_low, source_high = low, high
    late_low = late_high = frame
    for level in reversed(range(len(sizes.upsampling))):
        if level == 0:
            late_low = min(low // sizes.upsampling[0], source_low * sizes.fft_hop // sizes.hop)
            late_high = max(high // sizes.upsampling[0], source_high * sizes.fft_hop // sizes.hop)
        blocks = zip(sizes.kernels, sizes.dilations, strict=True)
        side = max(_block_field(kernel, dilations) for kernel, dilations in blocks)
        low, high = low - side, high + side
        side = _block_field(sizes.source_kernels[level], sizes.source_dilations[level])
        down = prod(sizes.upsampling[level + 1 :])
        width, padding = (1, 0) if down == 1 else (2 * down, down // 2)
        source_low = min(source_low, (low - side) * down - padding)
        source_high = max(source_high, (high + side) * down - padding + width - 1)
        if level == len(sizes.upsampling) - 1:
            low, high = low - 1, high - 1  # the reflected sample in front
        factor, kernel = sizes.upsampling[level], sizes.upsampling_kernels[level]
        padding = (kernel - factor) // 2
        low, high = -((kernel - 1 - padding - low) // factor), (high + padding) // factor
    low, high = low - 3, high + 3  # conv_pre
    source_low = (source_low * sizes.fft_hop - half) // sizes.hop
    source_high = (source_high * sizes.fft_hop + half - 1) // sizes.hop + 1  # the phase's slope
    low, high = min(low, source_low - LAYERS), max(high, source_high + LAYERS)
    return ReceptiveField(frame - low, high - frame, frame - late_low, late_high - frame)


def _block_field(kernel: int, dilations: tuple[int, ...]) -> int:
    """The receptive field of a residual block, to either side."""
    return sum((kernel - 1) // 2 * (dilation + 1) for dilation in dilations)
