"""Another speed in blocks is what it is in one go."""

import pytest

torch = pytest.importorskip("torch", reason="the cosyvoice2 engine needs torch")

from random import Random
from typing import Any

import numpy as np
from torch.nn.functional import interpolate

from voicefleet.worker.engines.cosyvoice2.vocoder.stretch import Stretch, stretched_frames

SPEEDS = [0.5, 0.8, 0.93, 1.0, 1.1, 1.25, 1.7, 2.0, 3.3]


def mel(frames: int) -> Any:
    return torch.randn(1, 80, frames, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("frames", [1, 2, 3, 50, 217])
def test_one_go_equals_interpolation(speed: float, frames: int) -> None:
    whole = mel(frames)
    stretched = Stretch(speed).push(whole, final=True)
    count = int(frames / speed)
    assert stretched.shape == (1, 80, count)
    if count in {0, frames}:  # torch refuses the one, and hands the other back as it is
        positions = (np.arange(count) + 0.5) * speed - 0.5
        bands = [np.interp(positions, np.arange(frames), band) for band in whole[0].double()]
        expected = torch.from_numpy(np.stack(bands))[None]
    else:
        expected = interpolate(
            whole.double(), scale_factor=1 / speed, mode="linear", recompute_scale_factor=False
        )
    torch.testing.assert_close(stretched.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("speed", SPEEDS)
def test_any_blocks_equal_one_go(speed: float) -> None:
    random = Random(1)
    for _ in range(40):
        total = random.randrange(1, 160)
        whole = mel(total)
        expected = Stretch(speed).push(whole, final=True)
        cuts = sorted(random.choices(range(total + 1), k=random.randrange(6)))
        stretch = Stretch(speed)
        pieces: list[Any] = []
        for start, end in zip([0, *cuts], [*cuts, total], strict=True):
            final = end == total and len(pieces) == len(cuts)
            pieces.append(stretch.push(whole[:, :, start:end], final))
            made = sum(piece.shape[2] for piece in pieces)
            assert made == stretched_frames(end, speed, final)
        assert torch.equal(torch.cat(pieces, dim=2), expected)


@pytest.mark.parametrize("speed", SPEEDS)
def test_a_frame_comes_when_its_neighbours_are_there(speed: float) -> None:
    for frames in range(1, 60):
        count = stretched_frames(frames, speed, final=False)
        position = max(0.0, (count + 0.5) * speed - 0.5)
        assert speed == 1.0 or int(position) + 1 >= frames  # the next one must wait
        assert count <= stretched_frames(frames + 1, speed, final=False)


def test_little_history_is_kept() -> None:
    stretch = Stretch(0.7)
    for _ in range(10):
        stretch.push(mel(50), final=False)
        assert stretch._history is not None
        assert stretch._history.shape[-1] <= 3
