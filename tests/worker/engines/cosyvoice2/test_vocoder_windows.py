"""Windows of the vocoder join to what one rendering of the whole utterance gives."""

import pytest

torch = pytest.importorskip("torch", reason="the cosyvoice2 engine needs torch")

from itertools import pairwise, product
from random import Random
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from tests.worker.engines.cosyvoice2 import vocoder_cases as cases
from voicefleet.worker.engines.cosyvoice2.vocoder.model import Vocoder
from voicefleet.worker.engines.cosyvoice2.vocoder.noise import noise_offset, noise_table, read_noise
from voicefleet.worker.engines.cosyvoice2.vocoder.source import Cursor
from voicefleet.worker.engines.cosyvoice2.vocoder.windows import Window, Windows, receptive_field

HOP = cases.HOP
OFFSET = noise_offset(seed=7, segment=3)


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.inference_mode():
        yield


def plan_of(total: int, arrivals: list[int], **options: Any) -> list[Window]:
    plan = Windows(cases.SIZES, **options)
    windows: list[Window] = []
    for frames in [*arrivals, total]:
        while (window := plan.next(frames, frames == total)) is not None:
            windows.append(window)
    return windows


@pytest.mark.parametrize("total", [1, 5, 21, 22, 50, 55, 56, 57, 96, 97, 99, 100, 106, 333, 1000])
@pytest.mark.parametrize("first", [2, 20, 50])
def test_a_plan_keeps_each_frame_once_with_the_reach_around_it(total: int, first: int) -> None:
    left, right, *_ = receptive_field(cases.SIZES)
    windows = plan_of(total, [], first=first)
    assert windows[0].anchor == 0
    assert windows[-1].until == total
    assert [window.final for window in windows] == [False] * (len(windows) - 1) + [True]
    for before, after in pairwise(windows):
        assert before.until == after.anchor
    for window in windows:
        assert window.anchor < window.until
        assert window.start <= max(0, window.anchor - left)
        assert window.until <= window.start + window.filled - (0 if window.final else right)
        assert window.filled <= window.frames
        assert window.frames in {56, 96}
        assert window.filled == window.frames or window.start == 0
        assert window.whole == (window.final and window.start == 0)
        assert window.whole == (window.final and window.trim == (0, 0))


def test_every_window_has_one_of_the_lengths() -> None:
    """At any speed: a hop that is stretched beyond a window is cut to fit one."""
    left, right, *_ = receptive_field(cases.SIZES)
    for first, hop in product((1, 7, 21, 22, 40, 79, 120), (1, 20, 25, 50, 55, 100)):
        for margin in (1, 6):
            for total in (*range(1, 240, 3), 500):
                windows = plan_of(total, [], first=first, hops=(hop,), margin=margin)
                assert {window.frames for window in windows} <= {56, 96}
                assert windows[-1].until == total
                for window in windows:
                    assert window.start <= max(0, window.anchor - left)
                    end = window.start + window.filled
                    assert window.until <= end - (0 if window.final else right)


def test_a_plan_does_not_depend_on_how_frames_arrive() -> None:
    random = Random(3)
    for _ in range(300):
        total, margin = random.randrange(1, 500), 6
        options = {"first": random.randrange(2, 51, 2), "hops": random.choice([(50,), (50, 100)])}
        possible = range(1, max(1, total - margin + 1))
        arrivals = sorted(random.sample(possible, min(len(possible), random.randrange(6))))
        assert plan_of(total, arrivals, margin=margin, **options) == plan_of(total, [], **options)


def test_a_plan_asks_for_no_frame_older_than_it_said() -> None:
    for total in range(1, 400, 7):
        plan = Windows(cases.SIZES, first=30)
        oldest = plan.oldest
        while (window := plan.next(total, final=True)) is not None:
            assert window.start >= oldest
            oldest = plan.oldest
        assert oldest == 0 or oldest > total - 110


def test_a_window_comes_as_soon_as_its_frames_are_there() -> None:
    plan = Windows(cases.SIZES, first=50)
    assert plan.next(49, final=False) is None
    assert plan.next(50, final=False) == Window(0, 56, 50, 0, 29, False, (0, 18))
    assert plan.next(99, final=False) is None
    assert plan.next(100, final=False) == Window(4, 96, 96, 29, 79, False, (17, 18))
    assert plan.next(105, final=True) == Window(49, 56, 56, 79, 105, True, (17, 0))
    assert plan.next(105, final=True) is None


def test_the_reach_is_what_the_network_sees_and_no_more() -> None:
    """A NaN spreads to all that depends on it, however little."""
    middle, frames = 30, 61
    module = cases.vocoder()
    bands = cases.mel(frames)
    zero = torch.zeros(1, dtype=torch.float64)
    place = cases.cursor(0, 0, 0, zero)
    f0 = module.f0_predictor(bands)
    noise = cases.noise_of(module, frames, 0)
    source, _ = module.m_source(f0, noise, place)

    def seen(spoil: Any, samples: slice) -> set[int]:
        return {n - middle for n in range(frames) if bool(spoil(n)[..., samples].isnan().any())}

    def spoilt(x: Any, columns: slice) -> Any:
        x = x.clone()
        x[..., columns] = torch.nan
        return x

    kept = slice(middle * HOP, (middle + 1) * HOP)
    one = slice(middle, middle + 1)
    by_mel = seen(lambda n: module.decode(spoilt(bands, slice(n, n + 1)), source), kept)
    by_source = seen(
        lambda n: module.decode(bands, spoilt(source, slice(n * HOP, (n + 1) * HOP))), kept
    )
    by_f0 = seen(lambda n: module.f0_predictor(spoilt(bands, slice(n, n + 1))), one)
    assert by_f0 == set(range(-5, 6))
    # A frame's excitation needs the next frame's pitch; what was before comes with the phase.
    by_pitch = {a + b + c for a in by_source for b in by_f0 for c in (0, 1)}
    after = [module.m_source(spoilt(f0, slice(n, n + 1)), noise, place)[0] for n in range(frames)]
    assert [bool(x[0, 0, kept].isnan().any()) for x in after] == [
        n <= middle + 1 for n in range(61)
    ]
    left, right, late_left, late_right = receptive_field(cases.SIZES)
    assert (left, right) == (20, 21)
    assert by_mel | by_pitch == set(range(-left, right + 1))
    whole = module.decode(bands, source)[0, kept]
    for trim in (middle - late_left, 0), (0, frames - 1 - middle - late_right):
        first = (middle - trim[0]) * HOP
        enough = module.decode(bands, source, trim)[0, first : first + HOP]
        assert cases.relative(enough, whole) < 1e-6
        poor = tuple(side + 2 if side else 0 for side in trim)
        first = (middle - poor[0]) * HOP
        assert (
            cases.relative(module.decode(bands, source, poor)[0, first : first + HOP], whole) > 1e-6
        )


@pytest.mark.parametrize("pitch", list(cases.PITCHES))
@pytest.mark.parametrize(
    ("total", "first", "hops", "arrivals"),
    [
        (330, 50, (50,), [50, 100, 150, 200, 250, 300]),
        (330, 22, (50,), [22, 72, 122, 172, 222, 272, 322]),
        (203, 6, (50, 100), [6, 56, 156]),
        (104, 50, (50,), [50]),
        (60, 50, (50,), [50]),
        (37, 50, (50,), []),
        (1, 50, (50,), []),
    ],
)
def test_windows_equal_one_rendering(
    pitch: str, total: int, first: int, hops: tuple[int, ...], arrivals: list[int]
) -> None:
    module = cases.vocoder(pitch)
    bands = cases.mel(total, pitch)
    whole = cases.one_shot(module, bands, OFFSET)
    plan = Windows(cases.SIZES, first, hops)
    samples, seams = cases.in_windows(module, bands, OFFSET, plan, arrivals)
    assert samples.shape == whole.shape == (total * HOP,)
    assert len(seams) == len(plan_of(total, [], first=first, hops=hops)) - 1
    assert cases.relative(samples, whole) < 3e-6
    assert cases.relative(samples[-960:], whole[-960:]) < 3e-6  # the last 40 ms


@pytest.mark.parametrize("pitch", list(cases.PITCHES))
def test_an_utterance_shorter_than_its_window_ends_where_it_ends(pitch: str) -> None:
    """Padding, however loud, has no say in any sample; unmasked, it would."""
    module = cases.vocoder(pitch, rows_apart=False)
    for frames, lengths in ((56, range(1, 57, 5)), (96, range(57, 97, 8))):
        bands = {n: cases.mel(n, pitch, seed=n) for n in (*lengths, frames)}
        whole = {n: cases.one_shot(module, mel, OFFSET) for n, mel in bands.items()}
        rows = torch.full((len(bands), frames, cases.SIZES.mel_bands), 5.0)
        for row, (length, mel) in enumerate(bands.items()):
            rows[row, :length] = mel[0].T
        ends = torch.tensor(list(bands))
        zeros = torch.zeros_like(ends)
        place = Cursor(zeros, zeros, ends, zeros.double())
        offsets = torch.full_like(ends, OFFSET)
        samples, _ = module.window(rows, offsets, place, (0, 0), ends)
        otherwise = rows.clone()
        for row, length in enumerate(bands):
            otherwise[row, length:] = -9.0
        again, _ = module.window(otherwise, offsets, place, (0, 0), ends)
        unmasked, _ = module.window(rows, offsets, place)
        for row, (length, expected) in enumerate(whole.items()):
            kept = slice(length * HOP)
            assert torch.equal(again[row, kept], samples[row, kept]), length
            assert float((samples[row, kept] - expected).abs().max()) < 1e-6, length
            # A row as long as the window has nothing behind it.
            assert (cases.relative(unmasked[row, kept], expected) < 1e-3) == (length == frames)


def test_less_context_withholds_less_and_deviates() -> None:
    module = cases.vocoder("voiced")
    bands = cases.mel(200)
    whole = cases.one_shot(module, bands, OFFSET)
    error: list[float] = []
    for context in (16, 16), (8, 8):
        plan = Windows(cases.SIZES, context=context)
        samples, seams = cases.in_windows(module, bands, OFFSET, plan, [50, 100, 150])
        assert seams[0] == (50 - context[1]) * HOP
        error.append(cases.relative(samples, whole))
    assert error[0] < 1e-5 < error[1]
    with pytest.raises(ValueError, match="at least 5 frames"):
        Windows(cases.SIZES, context=(4, 20))


def test_the_cases_are_voiced_unvoiced_mixed_and_sweeping() -> None:
    voiced = {
        pitch: cases.vocoder(pitch).f0_predictor(cases.mel(330, pitch)) for pitch in cases.PITCHES
    }
    threshold = cases.SIZES.voiced_threshold
    assert bool((voiced["voiced"] > 100).all())
    assert bool((voiced["unvoiced"] < threshold).all())
    assert 0.1 < float((voiced["mixed"] > threshold).double().mean()) < 0.9
    assert float(voiced["sweep"][0, 10]) < 100
    assert float(voiced["sweep"][0, -10]) > 380


@pytest.mark.parametrize("fault", ["phase", "noise", "reach"])
def test_what_is_carried_is_needed(fault: str) -> None:
    """Without each of the three the comparison above would fail, by far."""
    module = cases.vocoder("voiced")
    bands = cases.mel(200)
    whole = cases.one_shot(module, bands, OFFSET)
    window = Window(20, 96, 96, 40, 90, False, (0, 0))
    if fault == "reach":
        window = Window(34, 64, 64, 40, 90, False, (0, 0))
    phase = torch.zeros(1, dtype=torch.float64)
    f0 = module.f0_predictor(bands)
    phase += (f0[0, : window.anchor] * HOP / cases.SIZES.sample_rate).sum()
    place = cases.cursor(window.start, window.anchor, window.until, phase)
    rows = bands[:, :, window.start : window.start + window.frames].transpose(1, 2)
    wanted = whole[window.anchor * HOP : window.until * HOP]

    def error(offset: int, place: Cursor) -> float:
        samples, _ = module.window(rows, torch.tensor([offset]), place)
        return cases.relative(samples[0, window.kept(HOP)], wanted)

    if fault == "phase":
        assert error(OFFSET, place) < 3e-6
        assert error(OFFSET, place._replace(phase=phase + 0.25)) > 1e-4
    elif fault == "noise":
        assert error(OFFSET + 1, place) > 1e-4
    else:
        assert error(OFFSET, place) > 1e-4


@pytest.mark.parametrize("pitch", ["voiced", "unvoiced"])
def test_seams_are_like_any_other_place(pitch: str) -> None:
    module = cases.vocoder(pitch)
    bands = cases.mel(1000, pitch)
    plan = Windows(cases.SIZES)
    samples, seams = cases.in_windows(module, bands, OFFSET, plan, list(range(50, 1000, 50)))
    assert len(seams) == 19
    steps = samples.diff().abs()
    at_seams = steps[torch.tensor(seams) - 1]
    assert float(at_seams.max()) <= float(steps.quantile(0.999))
    assert float(at_seams.mean()) < 2 * float(steps.mean())
    around = torch.stack([samples[seam - 480 : seam + 480] for seam in seams])
    assert 0.9 < float(around.std() / samples.std()) < 1.1


def test_a_long_utterance_keeps_its_phase() -> None:
    """20 s in windows, against the phase added up in float64 in one go."""
    module = cases.vocoder("voiced")
    bands = cases.mel(1000)
    f0 = module.f0_predictor(bands)
    exact = torch.remainder((f0 * HOP / cases.SIZES.sample_rate).cumsum(1), 1.0)[0]
    phase = torch.zeros(1, dtype=torch.float64)
    plan = Windows(cases.SIZES)
    while (window := plan.next(1000, final=True)) is not None:
        rows = bands[:, :, window.start : window.start + window.frames]
        place = cases.cursor(window.start, window.anchor, window.until, phase)
        noise = torch.zeros(1, window.frames * HOP, cases.SIZES.harmonics + 1)
        _, phase = module.m_source(module.f0_predictor(rows), noise, place)
        difference = float(phase - exact[window.until - 1])
        assert abs(difference - round(difference)) < 1e-10


def batch(module: Vocoder, count: int) -> tuple[Any, Any, Cursor]:
    """Windows of one length from the start, the middle and anywhere of their utterances."""
    rows = torch.cat([cases.mel(56, seed=row) for row in range(count)]).transpose(1, 2)
    first = torch.arange(count) * 31
    place = Cursor(first, first + 13, first + 45, torch.linspace(0, 0.9, count).double())
    return rows.contiguous(), torch.arange(count) * 1234, place


def test_a_row_does_not_depend_on_its_company() -> None:
    module = cases.vocoder("mixed")
    rows, offsets, place = batch(module, 5)
    samples, phases = module.window(rows, offsets, place)
    for row in (0, 3):
        one = slice(row, row + 1)
        alone = module.window(rows[one], offsets[one], Cursor(*(field[one] for field in place)))
        assert torch.equal(samples[one], alone[0])
        assert torch.equal(phases[one], alone[1])


def test_a_batch_computes_what_rows_apart_compute() -> None:
    apart, together = cases.vocoder("mixed"), cases.vocoder("mixed", rows_apart=False)
    samples, phases = apart.window(*batch(apart, 4))
    batched, batched_phases = together.window(*batch(together, 4))
    assert cases.relative(batched, samples) < 3e-6
    torch.testing.assert_close(batched_phases, phases, rtol=0, atol=1e-9)


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_window_never_waits_for_the_device() -> None:
    """Nothing reads a value back, and nothing is made from data of the host."""
    module = cases.vocoder("mixed", rows_apart=False)
    inputs = batch(module, 3)
    with torch.inference_mode(False), torch.no_grad(), Operations() as operations:
        module.window(*inputs)
    forbidden = {"_local_scalar_dense", "nonzero", "item", "lift_fresh", "scalar_tensor", "equal"}
    assert not forbidden & set(operations.names)
    assert operations.names.count("convolution") == 87
    views = {"view", "unsqueeze", "slice", "select", "transpose", "squeeze", "t", "expand"}
    assert len([name for name in operations.names if name not in views]) <= 500


def test_noise_is_read_by_position() -> None:
    table = noise_table(1000, 9)
    assert table.shape == (10_000, 9)
    assert torch.equal(table, noise_table(1000, 9))
    assert abs(float(table.mean())) < 0.02
    assert abs(float(table.std()) - 1) < 0.02
    first = torch.tensor([9_990, 0])
    noise = read_noise(table, torch.tensor([5, 12_345]), first, 20)
    assert torch.equal(noise[0], torch.cat([table[9_995:], table[:15]]))
    assert torch.equal(noise[1], table[2_345:2_365])


def test_noise_offsets_are_the_utterances_own() -> None:
    offsets = {noise_offset(seed, segment) for seed in range(20) for segment in range(20)}
    assert len(offsets) == 400
    assert noise_offset(7, 3) == noise_offset(7, 3)
    assert noise_offset(-(2**70), 0) >= 0
