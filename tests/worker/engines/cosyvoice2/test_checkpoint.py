"""Weights from disk: upstream's own, copies of them, and everything that is wrong with others."""

import hashlib
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine needs the cosyvoice extra: torch")
safetensors = pytest.importorskip("safetensors.torch", reason="needs the cosyvoice extra")

from torch import Tensor

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceError, CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.hyperparameters import TINY
from voicefleet.worker.engines.cosyvoice2.pack import checkpoint, random_weights, weights
from voicefleet.worker.engines.cosyvoice2.pack.checkpoint import Model
from voicefleet.worker.engines.cosyvoice2.pack.convert import convert

CPU = torch.device("cpu")
States = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def drawn() -> States:
    return random_weights.draw(TINY, seed=1)


@pytest.fixture
def states(drawn: States) -> States:
    """The three files' contents, to be spoilt."""
    return {file: dict(state) for file, state in drawn.items()}


@pytest.fixture
def saved(tmp_path: Path, states: States) -> Callable[..., Path]:
    def save(**options: Any) -> Path:
        for file, state in states.items():
            torch.save(state, tmp_path / file, **options)
        return tmp_path

    return save


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Model:
    return checkpoint.load(directory, TINY, dtype, CPU)


def refusal(directory: Path, dtype: torch.dtype = torch.float32) -> str:
    with pytest.raises(CosyVoiceInitializationError) as caught:
        load(directory, dtype)
    return str(caught.value)


def parameters(model: Model) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor
        for part, module in model._asdict().items()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }


def equal(one: Model, other: Model) -> bool:
    mine, yours = parameters(one), parameters(other)
    return mine.keys() == yours.keys() and all(torch.equal(mine[n], yours[n]) for n in mine)


@pytest.mark.parametrize("part", ["language_model", "flow", "vocoder"])
def test_upstream_has_our_names_and_shapes(part: str, tmp_path: Path) -> None:
    pytest.importorskip("cosyvoice", reason="the parity oracle: --group parity")
    from tests.worker.engines.cosyvoice2 import oracle

    theirs = getattr(oracle, part)(TINY)
    path = tmp_path / "x.pt"
    torch.save(theirs.state_dict(), path)
    ours = getattr(checkpoint.skeleton(TINY), part)
    state = weights.read_original(path)
    assert checkpoint.differences(ours, state, path) == []
    checkpoint.assign(ours, state, path, torch.float32, CPU)
    loaded = ours.state_dict()
    for name, tensor in theirs.state_dict().items():
        if name in loaded:
            assert torch.equal(loaded[name], tensor)
    for module_name, module in theirs.named_modules():
        if hasattr(module, "parametrizations"):  # upstream's own folding, by its own code
            name = f"{module_name}.weight"
            torch.testing.assert_close(loaded[name], module.weight, rtol=1e-6, atol=1e-7)


def test_what_is_drawn_is_loaded(saved: Callable[..., Path], drawn: States) -> None:
    model = load(saved())
    embedding = model.language_model.speech_embedding.weight
    assert torch.equal(embedding, drawn["llm.pt"]["speech_embedding.weight"])
    for name, tensor in parameters(model).items():
        assert not tensor.is_meta and not tensor.requires_grad, name
        assert tensor.isfinite().all(), name
    assert not any(module.training for part in model for module in part.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_vocoder_stays_float32(saved: Callable[..., Path], dtype: torch.dtype) -> None:
    model = load(saved(), dtype)
    assert model.language_model.speech_embedding.weight.dtype == dtype
    assert model.flow.input_embedding.weight.dtype == dtype
    assert model.vocoder.conv_pre.weight.dtype == torch.float32


def test_a_loaded_model_is_its_own(saved: Callable[..., Path], states: States) -> None:
    """Neither the file nor what it is mapped to lies under a loaded model."""
    directory = saved()
    model = load(directory)
    before = {name: tensor.clone() for name, tensor in parameters(model).items()}
    for file in states:
        with (directory / file).open("r+b") as content:
            content.truncate(100)
    assert all(torch.equal(before[name], tensor) for name, tensor in parameters(model).items())


@pytest.mark.parametrize("prefix", ["", "generator."])
@pytest.mark.parametrize("spelling", ["new", "old", "folded"])
def test_every_way_the_vocoder_is_saved(
    saved: Callable[..., Path], states: States, prefix: str, spelling: str
) -> None:
    expected = load(saved())
    hift = states["hift.pt"]
    if spelling == "folded":
        hift = weights.normalise(Path("hift.pt"), hift)
    elif spelling == "old":
        hift = {
            name.replace("parametrizations.weight.original0", "weight_g").replace(
                "parametrizations.weight.original1", "weight_v"
            ): tensor
            for name, tensor in hift.items()
        }
    states["hift.pt"] = {prefix + name: tensor for name, tensor in hift.items()}
    assert equal(load(saved()), expected)


def test_what_is_known_to_be_unused_is_passed_over(
    saved: Callable[..., Path], states: States
) -> None:
    expected = load(saved())
    llm: dict[str, Any] = states["llm.pt"]
    llm |= {"epoch": 3, "step": 77, "llm.model.model.rotary_emb.inv_freq": torch.ones(8)}
    del llm["llm.model.lm_head.weight"]
    assert equal(load(saved()), expected)


def test_the_old_file_format(saved: Callable[..., Path]) -> None:
    expected = load(saved())
    assert equal(load(saved(_use_new_zipfile_serialization=False)), expected)


def test_all_that_is_wrong_is_said_at_once(saved: Callable[..., Path], states: States) -> None:
    llm, flow, hift = states["llm.pt"], states["flow.pt"], states["hift.pt"]
    del llm["llm_decoder.bias"]
    llm["llm.model.model.layers.2.mlp.up_proj.weight"] = torch.ones(128, 64)
    flow["encoder_proj.weight"] = torch.ones(80, 256)
    hift["conv_pre.bias"] = torch.ones(64, dtype=torch.int64)
    directory = saved()
    assert refusal(directory).splitlines() == [
        f"{directory}/llm.pt: llm_decoder.bias is missing: [6564] is needed",
        f"{directory}/llm.pt: llm.model.model.layers.2.mlp.up_proj.weight [128, 64] "
        "is not part of this architecture",
        f"{directory}/flow.pt: encoder_proj.weight is [80, 256], [80, 512] is needed",
        f"{directory}/hift.pt: conv_pre.bias holds torch.int64, which are no weights",
    ]


def test_a_long_list_is_cut(saved: Callable[..., Path], states: States) -> None:
    states["flow.pt"] = {}
    lines = refusal(saved()).splitlines()
    assert len(lines) == checkpoint.MOST_NAMED + 1
    needed = len(checkpoint.skeleton(TINY).flow.state_dict())
    assert lines[-1] == f"... and {needed - checkpoint.MOST_NAMED} more"


def test_missing_files_are_named_with_a_remedy(saved: Callable[..., Path]) -> None:
    directory = saved()
    (directory / "llm.pt").unlink()
    (directory / "hift.pt").unlink()
    lines = refusal(directory).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"there is no {directory}/llm.pt",
        f"there is no {directory}/hift.pt",
    ]
    assert all("voicefleet voicepacks fetch" in line for line in lines)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_a_file_that_was_cut_short(saved: Callable[..., Path], kept: float, zipped: bool) -> None:
    path = saved(_use_new_zipfile_serialization=zipped) / "flow.pt"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert refusal(path.parent).startswith(f"{path}: is damaged or cut short")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('this ran')",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_a_pickle_that_needs_code_is_refused(
    saved: Callable[..., Path], states: States, zipped: bool
) -> None:
    states["llm.pt"]["evil"] = Evil()  # pyright: ignore
    directory = saved(_use_new_zipfile_serialization=zipped)
    assert refusal(directory).startswith(f"{directory}/llm.pt: would run code when it is read")
    (directory / "llm.pt").write_bytes(pickle.dumps(Evil()))
    assert str(directory / "llm.pt") in refusal(directory)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(2), {"a": "text"}])
def test_what_holds_no_tensors_is_refused(saved: Callable[..., Path], content: object) -> None:
    directory = saved()
    torch.save(content, directory / "flow.pt")
    assert re.match(rf"{directory}/flow\.pt: (holds no mapping|a is no tensor)", refusal(directory))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(
    saved: Callable[..., Path], states: States, value: float
) -> None:
    tensor = states["flow.pt"]["encoder_proj.weight"].clone()
    tensor[3, 5] = value
    states["flow.pt"]["encoder_proj.weight"] = tensor
    directory = saved()
    assert refusal(directory) == (
        f"{directory}/flow.pt: encoder_proj.weight holds NaN or infinity in torch.float32"
    )


def test_weights_that_do_not_fit_into_fp16(saved: Callable[..., Path], states: States) -> None:
    tensor = states["llm.pt"]["llm_decoder.bias"].clone()
    tensor[0] = 1e5
    states["llm.pt"]["llm_decoder.bias"] = tensor
    directory = saved()
    assert "llm_decoder.bias holds NaN or infinity in torch.float16" in refusal(
        directory, torch.float16
    )
    load(directory, torch.bfloat16)
    with pytest.raises(CosyVoiceInitializationError, match=r"llm_decoder\.bias"):
        convert(directory, torch.float16)


def test_half_of_a_weight_norm(saved: Callable[..., Path], states: States) -> None:
    del states["hift.pt"]["conv_pre.parametrizations.weight.original1"]
    directory = saved()
    assert refusal(directory).startswith(f"{directory}/hift.pt: weight norm: ")


def test_errors_are_of_one_family() -> None:
    assert issubclass(CosyVoiceInitializationError, CosyVoiceError)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_copies_load_as_the_originals_do(
    saved: Callable[..., Path], states: States, dtype: torch.dtype
) -> None:
    directory = saved()
    expected = load(directory, dtype)
    written = convert(directory, dtype)
    assert [path.name for path in written] == [
        "llm.safetensors",
        "flow.safetensors",
        "hift.safetensors",
    ]
    header = weights.read_header(written[0])
    assert header["sha256"] == hashlib.sha256((directory / "llm.pt").read_bytes()).hexdigest()
    assert header["dtype"] == str(dtype).removeprefix("torch.")
    assert "llm.model.lm_head.weight" not in weights.read_copy(written[0])
    assert equal(load(directory, dtype), expected)
    for file in states:
        (directory / file).unlink()
    assert equal(load(directory, dtype), expected)
    if dtype != torch.float32:
        held = str(dtype).removeprefix("torch.")
        assert f"llm.safetensors: holds {held}, which cannot serve" in refusal(directory)


def test_copies_are_preferred_only_where_they_are_as_good(saved: Callable[..., Path]) -> None:
    directory = saved()
    exact, rounded = load(directory), load(directory, torch.bfloat16)
    convert(directory, torch.bfloat16)
    assert equal(load(directory), exact)  # from the originals
    assert equal(load(directory, torch.bfloat16), rounded)
    convert(directory, torch.float32)
    (directory / "llm.pt").write_bytes(bytes((directory / "llm.pt").stat().st_size))
    assert equal(load(directory), exact)  # the original is not even looked at


def test_a_copy_of_something_else_is_refused(saved: Callable[..., Path], states: States) -> None:
    directory = saved()
    convert(directory, torch.float32)
    states["llm.pt"]["llm.model.lm_head.weight"] = torch.ones(512, 64)  # shared no more: larger
    saved()
    assert "llm.safetensors: was not made from this llm.pt: convert it again" in refusal(directory)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_copy_that_was_cut_short(saved: Callable[..., Path], kept: float) -> None:
    directory = saved()
    path = convert(directory, torch.float32)[1]
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert refusal(directory).startswith(f"{path}: is damaged or cut short")


def test_a_failed_conversion_leaves_what_was_there(saved: Callable[..., Path]) -> None:
    directory = saved()
    before = {path: path.read_bytes() for path in convert(directory, torch.float32)}
    (directory / "llm.pt").write_bytes(b"")
    with pytest.raises(CosyVoiceInitializationError, match=r"llm\.pt: is damaged"):
        convert(directory, torch.bfloat16)
    assert {path: path.read_bytes() for path in directory.glob("*.safetensors")} == before
    assert not [*directory.glob(".*")]
