"""Upstream behind our protocol: it makes what upstream makes, and its defects are patched."""

import importlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the cosyvoice extra (torch)")
pytest.importorskip("cosyvoice", reason="needs upstream's package (the parity group)")

from tests.worker.engines.cosyvoice2.driving import SENTENCES, Driver, segments
from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.family import CosyVoice2Config
from voicefleet.worker.engines.cosyvoice2.voices.speaker import Conditioning, condition
from voicefleet.worker.engines.cosyvoice2_upstream import core as core_module
from voicefleet.worker.engines.cosyvoice2_upstream import loading, package, patches
from voicefleet.worker.engines.cosyvoice2_upstream.core import CosyVoice2UpstreamCore, seed_of
from voicefleet.worker.engines.cosyvoice2_upstream.request import (
    CancelledError,
    UtteranceRequest,
    working_on,
)
from voicefleet.worker.engines.hosting.messages import Audio, Failed, Spoken
from voicefleet.worker.engines.protocol import (
    CannotSpeakError,
    EngineError,
    Mark,
    Segment,
    TurnSpec,
)
from voicefleet.worker.voicepacks import voicepack

PATCH = {patch.name: patch for patch in patches.PATCHES}
LONG = " ".join(SENTENCES)
CPU = torch.device("cpu")


class UpstreamDriver(Driver):
    def __init__(self, pack: Path, **config: Any) -> None:
        self.audio: dict[int, list[np.ndarray]] = {}
        self.marks: dict[int, list[tuple[int, Mark]]] = {}
        self.events: list[Any] = []
        self.ended: dict[int, Spoken | Failed] = {}
        section = CosyVoice2Config(implementation="upstream", **config)
        self.core: Any = CosyVoice2UpstreamCore(voicepack.read(pack), section, self._hear)
        self.core.load()

    @property
    def model(self) -> Any:
        """Upstream's, patched."""
        return self.core._upstream.model


@pytest.fixture(scope="module", autouse=True)
def mended_here_alone() -> Generator[None]:
    """What is patched here must not be what other tests compare with."""
    yield
    for name in list(sys.modules):
        if name.partition(".")[0] in ("cosyvoice", "matcha"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def driver(tiny_pack: Path) -> Generator[UpstreamDriver]:
    driver = UpstreamDriver(tiny_pack, slots=2)
    yield driver
    driver.core.close()


@pytest.fixture(scope="module")
def untouched(tiny_pack: Path) -> Any:
    """Upstream's model as it loads itself, but for the mask that it gets wrong."""
    model_class = package.import_model_class()
    options = loading._options(model_class, CosyVoice2Config(), tiny_pack)
    with package.stub_modules(), loading._read_in_fp32():
        model = model_class(str(tiny_pack), **options).model
    PATCH["decode-mask"].apply(model)
    return model


def told(core: Any, **spec: Any) -> tuple[Any, Conditioning]:
    spec = {"voice": core.info.default_voice, "seed": 7, **spec}
    voice = core._voices[spec["voice"]]
    return voice, condition(TurnSpec(**spec), voice, core._frontend)


def directly(model: Any, core: Any, sentence: Segment, **spec: Any) -> Iterator[np.ndarray]:
    """An utterance made by upstream's own parts, one after another, in this one thread."""
    voice, conditioning = told(core, **spec)
    (text,) = core._frontend.utterances(sentence.text)
    length = core._length(sentence, text, [text])
    inputs = loading.model_inputs(text, conditioning, voice)
    seed = seed_of(7, 0)

    def size(name: str) -> Any:
        return torch.tensor([inputs[name].shape[1]], dtype=torch.int32)

    ratio = (length + 0.5) / len(text)
    torch.manual_seed(seed)
    tokens = list(
        model.llm.inference(
            text=inputs["text"],
            text_len=size("text"),
            prompt_text=inputs["prompt_text"],
            prompt_text_len=size("prompt_text"),
            prompt_speech_token=inputs["llm_prompt_speech_token"],
            prompt_speech_token_len=size("llm_prompt_speech_token"),
            embedding=inputs["llm_embedding"],
            min_token_text_ratio=ratio,
            max_token_text_ratio=ratio,
        )
    )
    torch.manual_seed(seed)
    model.hift_cache_dict["direct"] = None
    prompt = inputs["flow_prompt_speech_token"].shape[1]
    at, hop, end = 0, 25, 25 + -prompt % 25
    while True:
        last = len(tokens) < end + 3
        piece = model.token2wav(
            token=torch.tensor([tokens if last else tokens[: end + 3]]),
            prompt_token=inputs["flow_prompt_speech_token"],
            prompt_feat=inputs["prompt_speech_feat"],
            embedding=inputs["flow_embedding"],
            token_offset=at,
            uuid="direct",
            stream=not last,
            finalize=last,
        )
        yield piece.squeeze(0).numpy()
        if last:
            return
        # The newest upstream doubles its hop up to 100, PyPI's keeps it.
        hop = min(100, hop * getattr(model, "stream_scale_factor", 1))
        at, end = end, end + hop


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"mode": "cross_lingual"},
        {"mode": "instruct", "instruct": "Speak softly."},
        {"voice": "default"},
    ],
    ids=["zero_shot", "cross_lingual", "instruct", "sft"],
)
def test_it_makes_what_upstream_makes(
    driver: UpstreamDriver, untouched: Any, spec: dict[str, Any]
) -> None:
    turn = 100 + len(driver.ended)
    ours = driver.speak(turn, SENTENCES[1], **spec)
    (sentence,) = segments(SENTENCES[1])
    theirs = list(directly(untouched, driver.core, sentence, **spec))
    assert len(theirs) > 2
    assert [len(piece) for piece in driver.audio[turn]] == [len(piece) for piece in theirs]
    assert np.array_equal(ours, np.concatenate(theirs))
    assert driver.marks[turn] == [(0, Mark(0, sentence))]


def test_a_turn_is_the_same_in_company(driver: UpstreamDriver) -> None:
    alone = driver.speak(200, *SENTENCES[:2])
    driver.open(201, segments(*SENTENCES[:2]))
    driver.open(202, segments(SENTENCES[2]), seed=8)
    driver.run(201, 202)
    assert np.array_equal(driver.heard(201), alone)
    assert [mark.segment.index for _, mark in driver.marks[201]] == [0, 1]
    assert not np.array_equal(driver.speak(203, *SENTENCES[:2], seed=8)[:5000], alone[:5000])


def test_it_says_what_it_can_do_and_what_was_patched(driver: UpstreamDriver) -> None:
    info = driver.core.info
    assert info.native_rate == 24_000
    assert info.slots == 2
    assert info.voices == ("random", "default")
    assert info.modes == ("zero_shot", "cross_lingual", "instruct", "sft")
    assert "text-streaming" not in info.capabilities
    assert info.synthetic
    needed = {"language-model-thread", "polling", "empty-cache", "decode-mask", "seeds"}
    assert needed < set(driver.core.patched)
    grows = hasattr(driver.model, "stream_scale_factor")
    assert ("hop-reset" in driver.core.patched) == grows, "PyPI's package has one hop for ever"


def test_another_speed_is_made_at_once(driver: UpstreamDriver) -> None:
    whole = driver.speak(300, SENTENCES[0])
    faster = driver.speak(301, SENTENCES[0], speed=2.0)
    assert len(driver.audio[300]) > 1
    assert len(driver.audio[301]) == 1
    assert len(faster) == pytest.approx(len(whole) / 2, abs=960)


def test_what_cannot_be_spoken_is_a_pause(driver: UpstreamDriver) -> None:
    samples = driver.speak(310, "...", SENTENCES[0])
    assert np.all(samples[: round(0.2 * 24_000)] == 0)
    assert [at for at, _ in driver.marks[310]] == [0, round(0.2 * 24_000)]


def test_a_stopped_turn_makes_no_further_chunk(
    driver: UpstreamDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    token2wav = driver.model.token2wav

    def counted(**options: Any) -> Any:
        made.append(options["token_offset"])
        return token2wav(**options)

    monkeypatch.setattr(driver.model, "token2wav", counted)
    driver.open(400, segments(LONG), seed=1)
    while 400 not in driver.audio:
        driver.core.step()
    thread, before = driver.core._turns[400], len(made)
    driver.core.cancel(400)
    thread.join(60)
    assert not thread._thread.is_alive()
    assert len(made) <= before + 1, "but for the one that was being made"
    assert not [each for each in threading.enumerate() if "llm_job" in each.name]
    assert not driver.model.tts_speech_token_dict
    assert not driver.model.llm_end_dict
    assert not driver.model.hift_cache_dict
    heard = len(driver.audio[400])
    while driver.core.step():
        pass
    assert len(driver.audio[400]) == heard
    assert 400 not in driver.ended
    monkeypatch.undo()
    driver.speak(401, SENTENCES[0])


def test_a_stopped_turn_draws_no_further_token(driver: UpstreamDriver) -> None:
    at_fifth, go_on, calls = threading.Event(), threading.Event(), [0]
    sampling = driver.model.llm.sampling

    def halting(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 5:
            at_fifth.set()
            assert go_on.wait(60)
        return sampling(*args, **kwargs)

    driver.model.llm.sampling = halting
    try:
        driver.open(410, segments(LONG))
        assert at_fifth.wait(60)
        thread = driver.core._turns[410]
        driver.core.cancel(410)
        go_on.set()
        thread.join(60)
    finally:
        driver.model.llm.sampling = sampling
    assert not thread._thread.is_alive()
    assert calls[0] == 5
    assert not driver.model.llm_end_dict


@pytest.mark.parametrize("speed", [1.0, 0.9])
def test_an_error_of_the_language_model_fails_its_turn_alone(
    driver: UpstreamDriver, speed: float
) -> None:
    turn = 500 + len(driver.ended)
    expected = driver.speak(turn, SENTENCES[0])
    sampling, calls = driver.model.llm.sampling, [0]

    def broken(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] > 40:
            raise RuntimeError("no such luck")
        return sampling(*args, **kwargs)

    driver.model.llm.sampling = broken
    try:
        driver.open(turn + 1, segments(LONG), speed=speed)
        driver.run(turn + 1)
    finally:
        driver.model.llm.sampling = sampling
    failed = driver.ended[turn + 1]
    assert isinstance(failed, Failed)
    assert failed.kind == "retry"
    assert "no such luck" in failed.message
    assert LONG not in failed.message
    assert not driver.model.llm_end_dict
    assert np.array_equal(driver.speak(turn + 2, SENTENCES[0]), expected)


def test_it_waits_for_its_listener(tiny_pack: Path) -> None:
    driver = UpstreamDriver(tiny_pack, max_ahead_s=0.5)
    driver.open(1, segments(*SENTENCES))
    thread = driver.core._turns[1]
    while thread._thread.is_alive() and not thread._changed._waiters:
        time.sleep(0.01)
    while driver.core.step():
        pass
    made = len(driver.heard(1))
    assert made < 3 * 24_000, "a chunk more than half a second"
    assert not driver.core.step()
    driver.run(1)
    assert len(driver.heard(1)) > 8 * 24_000
    driver.core.close()


def test_what_it_cannot_do_is_refused(driver: UpstreamDriver) -> None:
    with pytest.raises(CannotSpeakError, match="unknown voice"):
        driver.open(600, [], voice="nobody")
    with pytest.raises(CannotSpeakError, match="mode"):
        driver.open(600, [], mode="sft")
    with pytest.raises(CannotSpeakError, match="instruct"):
        driver.open(600, [], mode="instruct")
    for turn in (601, 602):
        driver.core.open(turn, TurnSpec(voice="random", seed=1))
    with pytest.raises(EngineError, match="places are taken"):
        driver.open(603, [])
    for turn in (601, 602, 603):
        driver.core.cancel(turn)
    driver.speak(604, SENTENCES[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"load_jit": True}, "load_jit"),
        ({"load_trt": True}, "load_trt"),
        ({"load_vllm": True}, "load_vllm"),
        ({"dtype": "fp16"}, "fp16"),
        ({"dtype": "bf16"}, "bf16"),
        ({"device": "cuda"}, "CUDA"),
        ({"device": "cuda:1"}, "CUDA"),
    ],
)
def test_an_option_that_cannot_be_had_is_refused(
    tiny_pack: Path, config: dict[str, Any], named: str
) -> None:
    with pytest.raises(CosyVoiceInitializationError, match=named):
        UpstreamDriver(tiny_pack, **config)


def test_options_need_their_packages_and_files(
    tiny_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as it can be seen without a device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model_class = package.import_model_class()

    def refused(match: str, **config: Any) -> None:
        section = CosyVoice2Config(implementation="upstream", **config)
        with pytest.raises(CosyVoiceInitializationError, match=match):
            loading._options(model_class, section, tiny_pack)

    refused(r"flow\.encoder\.fp16\.zip", load_jit=True, dtype="fp16")
    refused("CUDA_VISIBLE_DEVICES", device="cpu")
    if importlib.util.find_spec("tensorrt") is None:
        refused("tensorrt", load_trt=True)
    if importlib.util.find_spec("vllm") is None:
        refused("vllm", load_vllm=True)


def test_without_the_package_it_says_how_to_bring_it(
    tiny_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "cosyvoice"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cosyvoice", None)
    with pytest.raises(CosyVoiceInitializationError, match=r"git clone.*PYTHONPATH"):
        UpstreamDriver(tiny_pack)


def test_without_a_need_of_the_package_it_names_it(
    tiny_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "cosyvoice.cli.cosyvoice", raising=False)
    monkeypatch.setitem(sys.modules, "hyperpyyaml", None)
    with pytest.raises(CosyVoiceInitializationError, match=r"hyperpyyaml.*\[upstream\]"):
        UpstreamDriver(tiny_pack)


TRAINING = """
hifigan: !new:cosyvoice.hifigan.hifigan.HiFiGan
    generator: !ref <hift>
    discriminator: !new:cosyvoice.hifigan.discriminator.MultipleDiscriminator
        mpd: !new:matcha.hifigan.models.MultiPeriodDiscriminator
        mrd: !new:cosyvoice.hifigan.discriminator.MultiResSpecDiscriminator
parquet_opener: !name:cosyvoice.dataset.processor.parquet_opener
compute_fbank: !name:cosyvoice.dataset.processor.compute_fbank
    feat_extractor: !ref <feat_extractor>
data_pipeline: [
    !ref <parquet_opener>,
    !ref <compute_fbank>,
]
"""


def test_the_published_file_with_its_training_parts_is_loaded(
    tiny_pack: Path, tmp_path: Path
) -> None:
    pack = tmp_path / "cosyvoice2" / "tiny"
    shutil.copytree(tiny_pack, pack)
    with (pack / "cosyvoice2.yaml").open("a") as file:
        file.write(TRAINING)
    before = {name for name in sys.modules if name.startswith(("cosyvoice", "matcha"))}
    UpstreamDriver(pack).core.close()
    after = {name for name in sys.modules if name.startswith(("cosyvoice", "matcha"))}
    left = [name for name in after - before if isinstance(sys.modules[name], package._StubModule)]
    assert not left, "stand-ins are for the load alone"


WITHOUT = """
import sys
from importlib.machinery import PathFinder
from pathlib import Path

ABSENT = {"torchaudio", "modelscope", "whisper", "tiktoken", "librosa", "onnxruntime", "onnx",
          "lightning", "hydra", "gdown", "wget", "pyworld", "pyarrow", "inflect", "wetext",
          "matplotlib", "x_transformers", "tensorrt", "vllm"}

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder

from voicefleet.worker.engines.cosyvoice2.family import CosyVoice2Config
from voicefleet.worker.engines.cosyvoice2_upstream.core import build
from voicefleet.worker.voicepacks import voicepack

core = build(voicepack.read(Path(sys.argv[1])), CosyVoice2Config(), print)
core.load()
assert not ABSENT & sys.modules.keys(), ABSENT & sys.modules.keys()
print("loaded")
"""


def test_serving_needs_no_more_than_the_extra(tiny_pack: Path) -> None:
    """Nothing of what upstream's training and its reading of recordings need is imported."""
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT, str(tiny_pack)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("loaded\n"), done.stderr


class GrowsHop:
    """What the official repository's ``tts`` does with its hop."""

    def __init__(self) -> None:
        self.token_hop_len = 25

    def tts(self) -> Generator[int]:
        for _ in range(3):
            yield self.token_hop_len
            self.token_hop_len = min(100, 2 * self.token_hop_len)


def hops(model: Any, request: UtteranceRequest) -> Iterator[int]:
    chunks = model.tts()
    while True:
        with working_on(request):
            hop = next(chunks, None)
        if hop is None:
            return
        yield hop


def test_the_hop_begins_anew_with_each_request() -> None:
    model = GrowsHop()
    assert PATCH["hop-reset"].needed(model)
    assert [list(model.tts()), list(model.tts())] == [[25, 50, 100], [100, 100, 100]]
    model = GrowsHop()
    PATCH["hop-reset"].apply(model)
    one, other = (hops(model, UtteranceRequest(n, None, CPU)) for n in range(2))
    assert [next(one), next(one), next(other), next(one), next(other)] == [25, 50, 25, 100, 50]
    assert list(hops(model, UtteranceRequest(2, None, CPU))) == [25, 50, 100]


def test_first_chunks_are_of_one_size(driver: UpstreamDriver) -> None:
    for turn in (700, 701):
        driver.speak(turn, LONG, seed=turn)
    first, second = (len(driver.audio[turn][0]) for turn in (700, 701))
    assert first == second == 25 * 960 - 3840, "what the vocoder withholds is missing"


def test_waiting_ends_with_the_news(driver: UpstreamDriver) -> None:
    """Were it slept, or not told, this would take an hour."""
    clock = type(driver.model).tts.__globals__["time"]
    request = UtteranceRequest(0, None, CPU)
    with working_on(request):
        request.news.set()
        clock.sleep(3600)
        request.cancel()
        with pytest.raises(CancelledError):
            clock.sleep(3600)
    request = UtteranceRequest(0, None, CPU)
    request.fail(ValueError("gone"))
    request.news.set()
    with working_on(request), pytest.raises(ValueError, match="gone"):
        clock.sleep(3600)


def test_the_cache_is_kept(driver: UpstreamDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def emptied() -> None:
        raise AssertionError("empty_cache")

    monkeypatch.setattr(torch.cuda, "empty_cache", emptied)
    theirs = type(driver.model).tts.__globals__["torch"]
    theirs.cuda.empty_cache()
    theirs.cuda.current_stream().synchronize()
    assert theirs.zeros is torch.zeros
    assert theirs.cuda.is_available is torch.cuda.is_available


def test_a_mask_that_is_read_right_is_left_alone(driver: UpstreamDriver) -> None:
    assert "decode-mask" in driver.core.patched
    assert not PATCH["decode-mask"].needed(driver.model), "patched, it is not needed any more"


def test_seeds_differ_by_turn_and_utterance() -> None:
    seeds = {seed_of(seed, number) for seed in range(20) for number in range(20)}
    assert len(seeds) == 400
    assert seed_of(7, 0) == seed_of(7, 0)
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_warm_up_is_heard_by_nobody(driver: UpstreamDriver) -> None:
    count = len(driver.events)
    driver.core.warm_up(SENTENCES[0])
    assert len(driver.events) == count
    assert core_module.DRY_RUN not in driver.core._turns
    assert driver.core.timings["dry_run"] > 0


def test_audio_comes_as_chunks_of_a_stream(driver: UpstreamDriver) -> None:
    driver.speak(800, *SENTENCES)
    events = [event for event in driver.events if getattr(event, "turn", None) == 800]
    assert all(isinstance(event, Audio) for event in events[:-1])
    assert isinstance(events[-1], Spoken)
    assert np.isfinite(driver.heard(800)).all()
