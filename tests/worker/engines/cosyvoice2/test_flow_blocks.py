"""Blocks from caches: exact, shared, whoever else is in the batch, and without waiting."""

from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the cosyvoice2 engine needs torch")

from torch.utils._python_dispatch import TorchDispatchMode

from tests.worker.engines.cosyvoice2.flow_cases import (
    case,
    load,
    random_flow,
    relative,
    speak,
    whole,
)
from voicefleet.worker.engines.cosyvoice2.flow.block_manager import CacheFullError
from voicefleet.worker.engines.cosyvoice2.flow.blocks import BlockRenderer, page_bytes, state_bytes
from voicefleet.worker.engines.cosyvoice2.flow.model import Flow
from voicefleet.worker.engines.cosyvoice2.hyperparameters import TINY, FlowSizes


@pytest.fixture(scope="module")
def flow() -> Flow:
    return random_flow()


def renderer_of(flow: Flow, **options: Any) -> BlockRenderer:
    given: dict[str, Any] = {"pages": 40, "states": 10, "max_blocks": 12} | options
    return BlockRenderer(flow, **given)


# Prompt and utterance: unaligned, none, aligned, just past it, all in one block, many blocks,
# an end within the look-ahead.
LENGTHS = [(30, 61), (0, 70), (50, 40), (53, 22), (10, 5), (27, 100), (25, 1), (60, 40), (40, 37)]


@pytest.mark.parametrize(("prompt", "spoken"), LENGTHS)
def test_blocks_are_what_the_whole_is(flow: Flow, prompt: int, spoken: int) -> None:
    one = case(prompt, spoken)
    renderer = renderer_of(flow)
    rendering = renderer.begin(load(renderer, one))
    assert rendering is not None
    mel = torch.cat(speak(renderer, rendering, one.spoken))
    assert mel.shape == (2 * spoken, 80)
    assert relative(mel, whole(flow, one)) < 1e-5


def test_exact_where_rounding_is_out_of_the_way() -> None:
    flow = random_flow(dtype=torch.float64)
    one = case(38, 70)
    renderer = renderer_of(flow)
    rendering = renderer.begin(load(renderer, one))
    assert rendering is not None
    mel = torch.cat(speak(renderer, rendering, one.spoken))
    assert relative(mel, whole(flow, one)) < 1e-7  # the state between the steps is float32


def test_a_block_waits_for_its_tokens_and_for_no_more(flow: Flow) -> None:
    one = case(30, 61)
    renderer = renderer_of(flow)
    rendering = renderer.begin(load(renderer, one))
    assert rendering is not None
    assert rendering.needed == 50 + 3 - 30
    assert rendering.next(one.spoken[:22], False) is None
    block = rendering.next(one.spoken[:23], False)
    assert block is not None
    assert (block.first, block.frames) == (10, 50)
    assert rendering.next([], True) is None


def test_another_lookahead_is_another_mel(flow: Flow) -> None:
    """The three tokens ahead are seen: the parity above does not come from their being ignored."""
    one = case(30, 61)
    renderer = renderer_of(flow)
    prompt = load(renderer, one)
    mels: list[Any] = []
    for ahead in (1, 2):
        rendering = renderer.begin(prompt)
        assert rendering is not None
        block = rendering.next([*one.spoken[:20], ahead, ahead, ahead], False)
        assert block is not None
        mels.append(renderer.render([block], 1))
    assert relative(*mels) > 1e-3


def company(renderer: BlockRenderer, batch: int) -> tuple[list[Any], list[Any]]:
    """Utterances of two voices that begin one after another, rendered together."""
    cases = [case(30, 61), case(53, 80), case(30, 61), case(0, 33)]
    first, other = load(renderer, cases[0]), load(renderer, cases[1])
    prompts = [first, other, first, load(renderer, cases[3])]
    renderings = [renderer.begin(prompt) for prompt in prompts]
    mels: list[list[Any]] = [[] for _ in cases]
    for turn in range(12):
        blocks: list[Any] = []
        rows: list[int] = []
        for row, one in enumerate(cases):
            rendering = renderings[row]
            assert rendering is not None
            block = rendering.next(one.spoken, True) if turn >= row else None
            if block:
                blocks.append(block)
                rows.append(row)
        if blocks:
            rendered = renderer.render(blocks, batch)
            for row, block, mel in zip(rows, blocks, rendered, strict=True):
                mels[row].append(mel[block.first : block.frames])
    return cases, [torch.cat(parts) for parts in mels]


@pytest.mark.parametrize("batch", [4, 6])
def test_a_batch_of_utterances_at_different_places(flow: Flow, batch: int) -> None:
    cases, mels = company(renderer_of(flow, rows_apart=False), batch)
    for one, mel in zip(cases, mels, strict=True):
        assert relative(mel, whole(flow, one)) < 1e-5


def test_samples_do_not_depend_on_company(flow: Flow) -> None:
    cases, mels = company(renderer_of(flow), 6)
    for one, mel in zip(cases, mels, strict=True):
        renderer = renderer_of(flow, pages=9, states=2)
        rendering = renderer.begin(load(renderer, one))
        assert rendering is not None
        assert torch.equal(mel, torch.cat(speak(renderer, rendering, one.spoken)))
    assert torch.equal(mels[0], mels[2])


def test_utterances_of_a_voice_share_its_prompt(flow: Flow) -> None:
    one = case(60, 40)
    renderer = renderer_of(flow, pages=10, states=3)
    prompt = load(renderer, one)
    assert len(prompt.pages) == 2
    assert (renderer.free_pages, renderer.free_states) == (8, 2)
    mels: list[Any] = []
    for _ in range(2):
        rendering = renderer.begin(prompt)
        assert rendering is not None
        mels.append(torch.cat(speak(renderer, rendering, one.spoken)))
    assert torch.equal(*mels)
    assert (renderer.free_pages, renderer.free_states) == (4, 0)
    assert renderer.begin(prompt) is None


def test_pages_come_back(flow: Flow) -> None:
    one = case(60, 40)
    renderer = renderer_of(flow, pages=10, states=3)
    prompt = load(renderer, one)
    rendering = renderer.begin(prompt)
    assert rendering is not None
    speak(renderer, rendering, one.spoken)
    renderer.release(prompt)
    assert renderer.free_pages == 6  # spoken with still
    renderer.close(rendering)
    renderer.close(rendering)
    renderer.release(prompt)
    assert (renderer.free_pages, renderer.free_states) == (10, 3)
    with pytest.raises(ValueError, match="released"):
        renderer.begin(prompt)


def test_old_pages_do_not_show(flow: Flow) -> None:
    """Room that others used before, in any order, is as good as new."""
    one = case(30, 61)
    fresh = renderer_of(flow)
    rendering = fresh.begin(load(fresh, one))
    assert rendering is not None
    expected = speak(fresh, rendering, one.spoken)
    used = renderer_of(flow, pages=7, states=4)
    for other in (case(53, 60), case(0, 90)):
        prompt = load(used, other)
        rendering = used.begin(prompt)
        assert rendering is not None
        speak(used, rendering, other.spoken)
        used.close(rendering)
        used.release(prompt)
    rendering = used.begin(load(used, one))
    assert rendering is not None
    assert torch.equal(torch.cat(expected), torch.cat(speak(used, rendering, one.spoken)))


def test_a_full_cache_changes_nothing_and_recomputing_goes_on(flow: Flow) -> None:
    one = case(30, 90)
    renderer = renderer_of(flow, pages=3, states=2)
    rendering = renderer.begin(load(renderer, one))
    assert rendering is not None
    mels: list[Any] = []
    for _ in range(2):
        block = rendering.next(one.spoken, True)
        assert block is not None
        mels.append(renderer.render([block], 1)[0, block.first : block.frames])
    block = rendering.next(one.spoken, True)
    assert block is not None
    with pytest.raises(CacheFullError):
        renderer.render([block], 1)
    assert (renderer.free_pages, rendering.done) == (0, 3)
    mels += renderer.recompute([block])
    assert (renderer.free_pages, renderer.free_states) == (2, 1)  # the prompt's are still held
    block = rendering.next(one.spoken, True)
    assert block is not None
    with pytest.raises(ValueError, match="without a cache"):
        renderer.render([block], 1)
    mels += renderer.recompute([block])
    assert rendering.next(one.spoken, True) is None
    assert relative(torch.cat(mels), whole(flow, one)) < 1e-5


@pytest.mark.parametrize("rows_apart", [True, False])
def test_recomputing_in_growing_hops(flow: Flow, rows_apart: bool) -> None:
    cases = [case(30, 90), case(53, 71), case(0, 40)]
    renderer = renderer_of(flow, rows_apart=rows_apart)
    renderings = [renderer.begin(load(renderer, one), cached=False) for one in cases]
    mels: list[list[Any]] = [[] for _ in cases]
    for hop in (1, 2, 4):
        blocks: list[Any] = []
        for rendering, one in zip(renderings, cases, strict=True):
            assert rendering is not None
            blocks.append(rendering.next(one.spoken, True, hop))
        there = [row for row, block in enumerate(blocks) if block]
        rendered = renderer.recompute([blocks[row] for row in there])
        for row, mel in zip(there, rendered, strict=True):
            mels[row].append(mel)
    for one, parts in zip(cases, mels, strict=True):
        assert relative(torch.cat(parts), whole(flow, one)) < 1e-5


def test_what_is_no_next_block_is_refused(flow: Flow) -> None:
    one = case(30, 61)
    renderer = renderer_of(flow, max_blocks=3)
    rendering = renderer.begin(load(renderer, one))
    assert rendering is not None
    block = rendering.next(one.spoken, True)
    assert block is not None
    with pytest.raises(ValueError, match="two blocks"):
        renderer.render([block, block], 2)
    with pytest.raises(ValueError, match="in a batch"):
        renderer.render([], 2)
    renderer.render([block], 1)
    with pytest.raises(ValueError, match="not the next"):
        renderer.render([block], 1)
    for _ in range(1):
        block = rendering.next(one.spoken, True)
        assert block is not None
        renderer.render([block], 1)
    block = rendering.next(one.spoken, True)
    assert block is not None
    with pytest.raises(ValueError, match="more than 3"):
        renderer.render([block], 1)
    with pytest.raises(ValueError, match="mel frames"):
        renderer.prompt([1, 2], torch.zeros(3, 80), one.speaker)


def test_an_idle_step_touches_nobody(flow: Flow) -> None:
    """Graphs are captured on idle inputs between blocks, also on some that were used before."""
    one = case(30, 61)
    quiet, disturbed = renderer_of(flow), renderer_of(flow)
    mels: list[Any] = []
    for renderer in (quiet, disturbed):
        rendering = renderer.begin(load(renderer, one))
        assert rendering is not None
        while block := rendering.next(one.spoken, True):
            mels.append(renderer.render([block], 1))
            if renderer is disturbed:
                for pages in (2, 3, 12):
                    inputs = renderer.inputs(1, pages)
                    inputs.make_idle()
                    assert bool(renderer.step(inputs).isfinite().all())
    half = len(mels) // 2
    assert torch.equal(torch.cat(mels[:half]), torch.cat(mels[half:]))


class Launches(TorchDispatchMode):
    """Counts what a step asks of the device; views start nothing."""

    VIEWS = frozenset(
        {"alias", "as_strided", "expand", "permute", "select", "slice", "split", "t", "transpose"}
        | {"split_with_sizes", "unbind", "unsqueeze", "view", "_unsafe_view"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(one, torch.Tensor):
                self.devices.add(one.device.type)
        if name not in self.VIEWS:
            self.count[name] += 1
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_never_waits_for_the_device(dtype: Any) -> None:
    """On a device that has shapes and no numbers there is nothing to wait for, or to copy from."""
    flow = random_flow(dtype=dtype, device="meta")
    renderer = renderer_of(flow)
    assert not renderer.rows_apart
    for batch, pages in ((1, 4), (4, 8)):
        inputs = renderer.inputs(batch, pages)
        with Launches() as launches:
            mel = renderer.step(inputs)
        assert mel.shape == (batch, 50, 80)
        assert launches.devices == {"meta"}


def test_a_step_costs_as_many_launches_for_many_as_for_one(flow: Flow) -> None:
    renderer = renderer_of(flow, rows_apart=False)
    counts: list[int] = []
    for batch, pages in ((1, 4), (4, 4), (4, 8)):
        with Launches() as launches:
            renderer.step(renderer.inputs(batch, pages))
        counts.append(launches.count.total())
    assert max(counts) - min(counts) <= 4
    # Each step: 12 for a transformer, 14 for a residual block, and a few.
    estimator = TINY.flow.estimator
    blocks = estimator.mid_blocks + 2
    step = blocks * (12 * estimator.transformers + 14) + 30
    assert counts[0] < TINY.flow.steps * step + 300


def test_a_step_that_waits_would_be_seen() -> None:
    flow = random_flow(device="meta")
    renderer = renderer_of(flow)
    with pytest.raises(Exception, match="meta"):
        renderer.step(renderer.inputs(1, 4)).sum().item()
    with pytest.raises(Exception, match="meta"):
        renderer.step(renderer.inputs(1, 4)).cpu()


def test_sizes_of_pages_and_states(flow: Flow) -> None:
    full = FlowSizes()
    # 56 layers, 10 steps, 2 rows, keys and values of 512 for 50 frames; the encoder's beside them.
    kv = 56 * 10 * 2 * 2 * 512 * 50
    encoder = 6 * 25 * 2 * 512 + 4 * 50 * 2 * 512
    assert page_bytes(full, torch.bfloat16) == 2 * (kv + encoder)
    assert page_bytes(full, torch.float32) == 4 * (kv + encoder)
    assert state_bytes(full, torch.bfloat16) < 1e6
    assert page_bytes(TINY.flow, torch.float32) < 2e7
    assert sum(buffer.nbytes for buffer in flow.buffers()) < 1e8
