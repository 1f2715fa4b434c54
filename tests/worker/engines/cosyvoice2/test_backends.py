"""Other software behind the engine's interfaces: refused where it cannot work, equal where it can.

What a GPU is needed for is not tested here: vLLM and TensorRT themselves. Everything up to their
calls is, with stand-ins that do in their place what the calls ask for.
"""

import ctypes
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the cosyvoice extra (torch)")

import msgspec

from tests.worker.engines.cosyvoice2.driving import SENTENCES, Driver, segments
from tests.worker.engines.cosyvoice2.flow_cases import case, load, random_flow, relative, speak
from voicefleet.worker.engines.cosyvoice2 import loading
from voicefleet.worker.engines.cosyvoice2.backends import (
    compiling,
    estimator_onnx,
    requirements,
    tensorrt_estimator,
    vllm_decoder,
    vllm_model,
)
from voicefleet.worker.engines.cosyvoice2.backends.recomputing import (
    RecomputingRenderer,
    RecomputingStage,
)
from voicefleet.worker.engines.cosyvoice2.errors import (
    CosyVoiceInitializationError,
    CosyVoiceSynthesisError,
)
from voicefleet.worker.engines.cosyvoice2.family import CosyVoice2Config
from voicefleet.worker.engines.cosyvoice2.flow.blocks import BlockRenderer
from voicefleet.worker.engines.cosyvoice2.flow.context import full_context
from voicefleet.worker.engines.cosyvoice2.graphs import Graphs
from voicefleet.worker.engines.cosyvoice2.hyperparameters import TINY
from voicefleet.worker.engines.cosyvoice2.lm import sampling
from voicefleet.worker.engines.cosyvoice2.lm.decoding import Decoder
from voicefleet.worker.engines.cosyvoice2.lm.language_model import LanguageModel
from voicefleet.worker.engines.cosyvoice2.pack import checkpoint, model_yaml

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
BF16, FP32 = torch.bfloat16, torch.float32

VLLM = {"llm_backend": "vllm"}
TENSORRT = {"estimator_backend": "tensorrt"}


# --- What cannot work is refused ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "device", "dtype", "problem"),
    [
        (VLLM, CPU, BF16, "llm_backend: vllm needs a CUDA device, and device is cpu"),
        (VLLM, torch.device("cuda", 1), BF16, "first GPU that it sees, not cuda:1"),
        (VLLM, GPU, FP32, "needs dtype bf16 or fp16, not fp32"),
        (VLLM | {"upstream_exact": True}, GPU, BF16, "vllm samples otherwise: no upstream_exact"),
        (VLLM | {"text_streaming": True}, GPU, BF16, "as a whole: no text_streaming"),
        (TENSORRT, CPU, BF16, "estimator_backend: tensorrt needs a CUDA device, and device is cpu"),
        (TENSORRT | {"upstream_exact": True}, GPU, BF16, "tensorrt rounds otherwise: no upstream"),
        ({"compile": True}, CPU, FP32, "compile: what is compiled are the fixed shapes of CUDA"),
        ({"compile": True, "cuda_graphs": "off"}, GPU, BF16, "cuda_graphs is off"),
    ],
)
def test_what_cannot_work_is_refused(
    options: dict[str, Any], device: Any, dtype: Any, problem: str
) -> None:
    with pytest.raises(CosyVoiceInitializationError, match=problem):
        requirements.check(CosyVoice2Config(**options), device, dtype)


def test_what_needs_nothing_is_not_refused() -> None:
    requirements.check(CosyVoice2Config(), CPU, FP32)
    requirements.check(CosyVoice2Config(compile=True), GPU, BF16)


@pytest.mark.parametrize(("options", "name"), [(VLLM, "vllm"), (TENSORRT, "tensorrt")])
class TestPackages:
    @pytest.fixture
    def install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
        """A package of that name with this source."""

        def install(source: str) -> None:
            (tmp_path / f"{name}.py").write_text(source)
            monkeypatch.syspath_prepend(tmp_path)
            monkeypatch.delitem(sys.modules, name, raising=False)

        return install

    def check(self, options: dict[str, Any]) -> str:
        with pytest.raises(CosyVoiceInitializationError) as refusal:
            requirements.check(CosyVoice2Config(**options), GPU, BF16)
        return str(refusal.value)

    def test_missing(self, options: dict[str, Any], name: str) -> None:
        if importlib.util.find_spec(name):
            pytest.skip(f"{name} is installed")
        message = self.check(options)
        assert f"{name} 1" in message or f"{name} 0.11 or newer" in message
        assert "is not installed: pip install" in message

    def test_broken(self, options: dict[str, Any], name: str, install: Any) -> None:
        install("raise ImportError('libcuda.so.1: cannot open shared object file')")
        assert "cannot be imported (libcuda.so.1: cannot open" in self.check(options)

    @pytest.mark.parametrize("version", ["0.10.2", "0.9", ""])
    def test_too_old(self, options: dict[str, Any], name: str, install: Any, version: str) -> None:
        install(f"__version__ = {version!r}")
        message = self.check(options)
        assert f"and {version or 'one without a version'} is installed: pip install" in message

    @pytest.mark.parametrize("version", ["11.4.1", "10.0.0b6"])
    def test_new_enough(
        self, options: dict[str, Any], name: str, install: Any, version: str
    ) -> None:
        install(f"__version__ = {version!r}")
        assert requirements.package("option", name, (0, 11), "").__version__ == version


@pytest.mark.parametrize("options", [VLLM, TENSORRT, {"compile": True}])
def test_a_load_is_refused_before_anything_is_read(
    tmp_path: Path, tiny_pack: Path, options: dict[str, Any]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    empty = tmp_path / "cosyvoice2" / "tiny"
    empty.mkdir(parents=True)
    shutil.copy(tiny_pack / "metadata.yaml", empty)
    (option,) = options
    with pytest.raises(CosyVoiceInitializationError, match=option):
        Driver(empty, **options)


# --- TensorRT ----------------------------------------------------------------------------------


class OnnxContext:
    """In the place of TensorRT's execution context: runs the graph on what the addresses hold."""

    def __init__(self, graph: bytes) -> None:
        runtime = pytest.importorskip("onnxruntime", reason="needs the cosyvoice extra")
        self._session = runtime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self.runs = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        inputs = {name: self._at(name, shape) for name, shape in self._shapes.items()}
        (result,) = self._session.run(None, inputs)
        self._at(estimator_onnx.OUTPUT, result.shape)[:] = result
        self.runs += 1
        return True

    def _at(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        kind = ctypes.c_int64 if name == "step" else ctypes.c_float
        size = int(np.prod(shape))
        memory = (kind * size).from_address(self._addresses[name])
        return np.ctypeslib.as_array(memory).reshape(shape)


@pytest.fixture(scope="module")
def graph() -> bytes:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"needs {package}, to export the estimator")
    return estimator_onnx.export(random_flow().decoder.estimator)


def on_onnx(flow: Any, graph: bytes, frames: int = 5000) -> OnnxContext:
    """Put the graph in the place of the flow's estimator."""
    context = OnnxContext(graph)
    backend = tensorrt_estimator.TensorrtEstimator(
        flow.decoder.estimator, context, frames, stream=lambda: 0
    )
    flow.decoder.register_module("estimator", backend)
    return context


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("frames", [2, 50, 173])
def test_the_graph_computes_what_the_estimator_does(
    graph: bytes, frames: int, streaming: bool
) -> None:
    flow = random_flow()
    estimator = flow.decoder.estimator
    draw = torch.Generator().manual_seed(frames)
    x = torch.randn(1, frames, 80, generator=draw)
    mu, prompt = torch.randn(2, 1, frames, 80, generator=draw).unbind()
    context = full_context(
        torch.tensor([frames] * 2), frames, 50 if streaming else None, torch.float32
    )
    constants = estimator.constants(mu, torch.randn(1, 80, generator=draw), prompt, context)
    expected = [estimator(x, constants, step, context, context) for step in (0, 4, 9)]
    on_onnx(flow, graph)
    backend = flow.decoder.estimator
    found = [backend(x, constants, step, context, context) for step in (0, 4, 9)]
    for one, other in zip(found, expected, strict=True):
        assert relative(one, other) < 1e-4
    assert relative(found[0], found[1]) > 1e-3, "steps differ"


def test_an_utterance_of_spans_computed_anew_is_the_one_of_blocks(graph: bytes) -> None:
    one = case(prompt=62, spoken=90)
    native = random_flow()
    blocks = BlockRenderer(native, pages=16, states=4, max_blocks=12)
    rendering = blocks.begin(load(blocks, one))
    assert rendering is not None
    expected = torch.cat(speak(blocks, rendering, one.spoken))

    flow = random_flow()
    context = on_onnx(flow, graph)
    renderer = RecomputingRenderer(flow, max_blocks=12)
    prompt = load(renderer, one)
    rendering = renderer.begin(prompt)
    assert rendering is not None
    mels: list[Any] = []
    for count in (1, 2, 4):
        if block := rendering.next(one.spoken, True, count):
            mels += renderer.recompute([block])
    assert rendering.next(one.spoken, True) is None
    renderer.close(rendering)
    renderer.release(prompt)
    found = torch.cat(mels)
    assert found.shape == expected.shape
    assert relative(found, expected) < 1e-4
    assert context.runs == 10 * len(mels)


def test_the_estimator_takes_whole_utterances_alone(graph: bytes) -> None:
    flow = random_flow()
    on_onnx(flow, graph, frames=100)
    backend = flow.decoder.estimator
    context = full_context(torch.tensor([4] * 4), 4, 50, torch.float32)
    with pytest.raises(CosyVoiceSynthesisError, match="one by one"):
        backend(torch.zeros(2, 4, 80), torch.zeros(2, 2, 4, 128), 0, context, context)
    context = full_context(torch.tensor([150] * 2), 150, 50, torch.float32)
    with pytest.raises(CosyVoiceSynthesisError, match="150 frames, of which TensorRT takes 100"):
        backend(torch.zeros(1, 150, 80), torch.zeros(1, 2, 150, 128), 0, context, context)


def test_an_engine_is_for_its_gpu_its_version_its_length_and_its_weights() -> None:
    def key(flow: Any, frames: int = 100, gpu: str = "one", version: str = "10.1") -> str:
        return tensorrt_estimator.key(flow.decoder.estimator, frames, gpu, version)

    flow = random_flow()
    same = key(flow)
    assert key(random_flow()) == same
    flow.decoder.estimator.final_proj.bias.data[3] += 1
    half = random_flow(dtype=torch.bfloat16)
    others = {key(flow), key(half), key(random_flow(), gpu="two")}
    others |= {key(random_flow(), frames=200), key(random_flow(), version="10.2")}
    assert len(others | {same}) == 6


@pytest.fixture
def spans(tiny_pack: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """A core whose flow computes every span anew, with its own estimator."""

    def stage(model: Any, config: Any, shares: Any, graphs: Graphs) -> RecomputingStage:
        renderer = RecomputingRenderer(model.flow, max_blocks=shares.max_blocks)
        vocoder = loading.VocoderStage(model.vocoder, shares.batches, graphs)
        return RecomputingStage(renderer, vocoder, shares.batches, graphs)

    monkeypatch.setattr(loading, "_audio", stage)
    return Driver(tiny_pack, slots=2, warm=True)


def test_a_core_speaks_the_same_without_remembered_blocks(tiny_pack: Path, spans: Driver) -> None:
    expected = Driver(tiny_pack, slots=2).speak(1, *SENTENCES[:2])
    spans.open(1, segments(*SENTENCES[:2]))
    spans.open(2, segments(SENTENCES[2]))
    spans.run(1, 2)
    found = spans.heard(1)
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


# --- vLLM --------------------------------------------------------------------------------------


def test_the_exported_model_is_the_language_model(tiny_pack: Path, tmp_path: Path) -> None:
    """Read by the library whose layout vLLM reads too."""
    transformers = pytest.importorskip("transformers", reason="needs transformers, to compare")
    sizes = model_yaml.read(tiny_pack / "cosyvoice2.yaml")
    written = vllm_model.export(tiny_pack, tmp_path, sizes.language_model, FP32, 640)
    config = msgspec.json.decode((tmp_path / "config.json").read_bytes())
    assert config["architectures"] == [vllm_model.ARCHITECTURE]
    state = loading.checkpoint.weights.read(tiny_pack, "llm.pt", FP32)[1]
    bias = vllm_model.tensors(state)["lm_head.bias"]
    theirs = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path, dtype=FP32).eval()
    assert sum(p.numel() for p in theirs.parameters()) * 4 + bias.nbytes == written

    model = checkpoint.load(tiny_pack, sizes, FP32, CPU).language_model
    with torch.inference_mode():
        read = model.prompt_embeddings(torch.arange(20), torch.arange(30))
        decoder = Decoder(model, 1, 100, 10, Graphs(enabled=False))
        slot, start = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
        hidden = model.body.prefill(read[None], slot, start, decoder.cache, len(read))
        found = theirs(inputs_embeds=read[None]).logits + bias
        assert relative(found, model.llm_decoder(hidden)) < 1e-5


class StandIn:
    """In the place of vLLM's engine: a request's tokens come from its seed and its embeddings."""

    def __init__(self) -> None:
        self.params: dict[str, Any] = {}
        self.aborted: list[str] = []
        self._running: dict[str, Iterator[Any]] = {}

    def add_request(self, request_id: str, prompt: dict[str, Any], params: Any) -> None:
        assert request_id not in self.params
        self.params[request_id] = params
        self._running[request_id] = self._tokens(prompt["prompt_embeds"], params)

    def _tokens(self, embeddings: Any, params: Any) -> Iterator[Any]:
        assert embeddings.ndim == 2
        mixed = int(embeddings.abs().sum() * 1000)
        draw = np.random.default_rng((params.seed, mixed))
        for count in range(1, params.max_tokens + 1):
            end = count > params.min_tokens and draw.random() < 0.05
            token = params.stop_token_ids[0] if end else int(draw.integers(6561))
            reason = "stop" if end else "length" if count == params.max_tokens else None
            yield SimpleNamespace(token_ids=[token], finish_reason=reason)
            if reason:
                return

    def step(self) -> list[Any]:
        outputs = [
            SimpleNamespace(request_id=name, outputs=[next(tokens)])
            for name, tokens in self._running.items()
        ]
        for output in outputs:
            if output.outputs[0].finish_reason:
                del self._running[output.request_id]
        return outputs

    def abort_request(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        for name in request_ids:
            self._running.pop(name, None)

    def has_unfinished_requests(self) -> bool:
        return bool(self._running)


def on_stand_in(model: Any, slots: int) -> tuple[Any, StandIn]:
    engine = StandIn()
    return vllm_decoder.VllmDecoder(model, slots, engine, SimpleNamespace, "delta"), engine


@pytest.fixture(scope="module")
def language_model() -> Any:
    torch.manual_seed(2)
    sizes = msgspec.structs.replace(TINY.language_model, layers=1)
    model = LanguageModel(sizes).eval().requires_grad_(False)
    model.optimise()
    return model


def test_an_utterance_by_vllm(language_model: Any) -> None:
    decoder, engine = on_stand_in(language_model, 2)
    read = language_model.prompt_embeddings(torch.arange(5), torch.arange(3))
    tokens: list[list[int]] = []
    for slot in (0, 1, 0):
        decoder.begin(slot, sampling.draws(7, 3, 40))
        decoder.constrain(slot, min_tokens=12, banned=(True, False, False))
        decoder.prefill(slot, read)
        new: list[int] = []
        stopped = False
        while not stopped and len(new) < 40:
            decoder.multi_step({slot: 40}, 3)
            news = decoder.collect()
            assert set(news) == {slot}
            some, stopped = news[slot]
            new += some
            assert decoder.count(slot) == len(new)
        assert stopped == (new[-1] >= 6561)
        tokens.append(new)
    assert tokens[0] == tokens[1] == tokens[2], "the draws seed it, wherever it is decoded"
    assert 12 < len(tokens[0]) <= 40
    params = engine.params["1"]
    assert (params.max_tokens, params.min_tokens, params.top_k) == (40, 12, 25)
    assert params.stop_token_ids == [6561, 6562, 6563]
    decoder.begin(0, sampling.draws(7, 4, 40))
    decoder.prefill(0, read)
    assert engine.params["4"].seed != params.seed
    assert engine.params["4"].min_tokens == 0


def test_a_stopped_utterance_is_gone_from_vllm(language_model: Any) -> None:
    decoder, engine = on_stand_in(language_model, 2)
    read = language_model.prompt_embeddings(torch.arange(5), torch.arange(3))
    for slot in (0, 1):
        decoder.begin(slot, sampling.draws(slot, 0, 30))
        decoder.constrain(slot, min_tokens=30, banned=(True, False, False))
        decoder.prefill(slot, read)
    decoder.multi_step({0: 30, 1: 30}, 4)
    decoder.stop(0)
    assert engine.aborted == ["1"]
    assert set(decoder.collect()) == {1}
    decoder.dry_run()  # takes a step: somebody is under way
    assert len(engine.params) == 2
    decoder.multi_step({1: 30}, 100)
    assert not engine.has_unfinished_requests()
    decoder.dry_run()
    assert len(engine.params) == 4


def test_vllm_reads_once_and_fills_nothing(language_model: Any) -> None:
    decoder, _ = on_stand_in(language_model, 1)
    decoder.begin(0, sampling.draws(0, 0, 30))
    decoder.prefill(0, language_model.start())
    with pytest.raises(ValueError, match="once"):
        decoder.prefill(0, language_model.start())
    with pytest.raises(ValueError, match="fill token"):
        decoder.constrain(0, min_tokens=0, banned=(False,) * 3, fill_at=4)


def test_a_core_speaks_with_tokens_from_vllm(
    tiny_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[StandIn] = []

    def build(
        pack: Path, model: Any, slots: int, positions: int, config: Any, device: Any
    ) -> vllm_decoder.VllmDecoder:
        decoder, engine = on_stand_in(model, slots)
        engines.append(engine)
        return decoder

    monkeypatch.setattr(vllm_decoder, "build", build)
    monkeypatch.setattr(requirements, "check", lambda *_: None)  # there is no GPU here
    driver = Driver(tiny_pack, slots=2, warm=True, **VLLM)
    alone = driver.speak(1, *SENTENCES)
    assert 8 < len(alone) / driver.core.info.native_rate < 14
    driver.open(2, segments(SENTENCES[0]), seed=1)
    driver.open(3, segments(*SENTENCES))
    for _ in range(20):
        driver.core.step()
    driver.core.cancel(2)
    driver.run(3)
    assert np.array_equal(driver.heard(3), alone)
    assert not engines[0].has_unfinished_requests()


# --- torch.compile and 16 bit ------------------------------------------------------------------


@pytest.fixture
def compiler() -> Iterator[None]:
    if not any(map(shutil.which, ("g++", "clang++"))):
        pytest.skip("torch.compile needs a C++ compiler")
    yield
    torch._dynamo.reset()


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("compiler")
def test_compiled_steps_are_the_eager_ones(language_model: Any) -> None:
    def decode(graphs: Graphs) -> tuple[Any, Any]:
        # Only steps: each length of a prompt would be compiled as well.
        decoder = Decoder(language_model, 2, 100, 20, Graphs(enabled=False))
        decoder.begin(0, sampling.draws(1, 0, 20))
        decoder.constrain(0, min_tokens=20, banned=(True, True, True))
        decoder.prefill(0, language_model.prompt_embeddings(torch.arange(9), torch.arange(5)))
        decoder._graphs = graphs
        decoder.multi_step({0: 12}, 12)
        return decoder.collect()[0], decoder.cache.values[:, 0, :, :26]

    with torch.inference_mode():
        eager, values = decode(Graphs(enabled=False))
        compiled, others = decode(compiling.CompiledGraphs(enabled=False))
    assert compiled == eager
    assert not torch.equal(values, torch.zeros_like(values))
    assert relative(others, values) < 1e-4


def test_what_cannot_be_compiled_is_an_error() -> None:
    def broken() -> Any:
        print("a side effect that no graph holds")
        return open

    with pytest.raises(CosyVoiceInitializationError, match="torch cannot compile a part"):
        compiling.compiled(lambda: broken().fileno())()


def test_a_missing_compiler_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("/nonexistent/c++",))
    torch._dynamo.reset()
    work = compiling.compiled(lambda: torch.ones(37).sin().cumsum(0) + 3)
    with pytest.raises(CosyVoiceInitializationError, match="compile: false, or install"):
        work()
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_core_in_16_bit_speaks_nearly_the_same(tiny_pack: Path, dtype: str) -> None:
    expected = Driver(tiny_pack, slots=1).speak(1, SENTENCES[0])
    found = Driver(tiny_pack, slots=1, dtype=dtype).speak(1, SENTENCES[0])
    assert np.isfinite(found).all()
    assert found.shape == expected.shape
    loud, quiet = np.abs(found).max(), np.abs(expected).max()
    assert 0.5 * quiet < loud < 2 * quiet


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_mel_in_16_bit_is_near(dtype: Any, limit: float) -> None:
    one = case(prompt=40, spoken=60)
    mels: list[Any] = []
    for kind in (torch.float32, dtype):
        renderer = BlockRenderer(random_flow(dtype=kind), pages=16, states=4, max_blocks=12)
        rendering = renderer.begin(load(renderer, one))
        assert rendering is not None
        mels.append(torch.cat(speak(renderer, rendering, one.spoken)))
    assert torch.isfinite(mels[1]).all()
    assert relative(mels[1], mels[0]) < limit
