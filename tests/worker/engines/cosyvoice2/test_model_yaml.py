"""``cosyvoice2.yaml``: what is read, what is refused, and that nothing in it ever runs.

No torch is needed: the file is data.
"""

import json
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.hyperparameters import (
    TINY,
    EncoderSizes,
    EstimatorSizes,
    FlowSizes,
    Hyperparameters,
    LanguageModelSizes,
    Sampling,
    VocoderSizes,
)
from voicefleet.worker.engines.cosyvoice2.pack import hyper_yaml, model_yaml, published_yaml
from voicefleet.worker.engines.protocol import EngineLoadError

FULL = Hyperparameters()


def write(directory: Path, sizes: Hyperparameters = FULL, text: str | None = None) -> Path:
    path = directory / "cosyvoice2.yaml"
    path.write_text(published_yaml.model_yaml(sizes) if text is None else text)
    (directory / "CosyVoice-BlankEN").mkdir(exist_ok=True)
    (directory / "CosyVoice-BlankEN/config.json").write_bytes(published_yaml.qwen_config(sizes))
    return path


@pytest.mark.parametrize("sizes", [FULL, TINY], ids=["full", "tiny"])
def test_what_is_written_is_read(tmp_path: Path, sizes: Hyperparameters) -> None:
    assert model_yaml.read(write(tmp_path, sizes)) == sizes


@given(
    st.builds(
        lambda layers, heads, mix, sampling, guidance, blocks, transformers, mids, channels, f0: (
            Hyperparameters(
                language_model=LanguageModelSizes(
                    layers=layers, heads=2 * heads, width=128 * heads, mix=mix, sampling=sampling
                ),
                flow=FlowSizes(
                    guidance=guidance,
                    encoder=EncoderSizes(blocks=blocks),
                    estimator=EstimatorSizes(transformers=transformers, mid_blocks=mids),
                ),
                vocoder=VocoderSizes(channels=channels, f0_channels=f0),
            )
        ),
        st.integers(1, 40),
        st.integers(1, 20),
        st.tuples(st.integers(1, 20), st.integers(1, 40)),
        st.builds(Sampling, top_p=st.floats(0.01, 1), tau=st.floats(1e-7, 1), top_k=st.just(3)),
        st.floats(0, 2),
        st.integers(1, 12),
        st.integers(1, 8),
        st.integers(1, 20),
        st.integers(1, 1024),
        st.integers(1, 1024),
    )
)
def test_all_sizes_survive(
    tmp_path_factory: pytest.TempPathFactory, sizes: Hyperparameters
) -> None:
    assert model_yaml.read(write(tmp_path_factory.mktemp("yaml"), sizes)) == sizes


def test_the_whole_training_recipe_is_read_too(tmp_path: Path) -> None:
    """The repository's own file has the parts that training needs; they are passed over."""
    training = """
__set_seed1: !apply:random.seed [1986]
hifigan: !new:cosyvoice.hifigan.hifigan.HiFiGan
    generator: !ref <hift>
    mel_spec_transform: [
        !ref <mel_spec_transform1>
    ]
mel_spec_transform1: !name:matcha.utils.audio.mel_spectrogram
    fmax: null
parquet_opener: !name:cosyvoice.dataset.processor.parquet_opener
data_pipeline: [
    !ref <parquet_opener>,
    !ref <hifigan>,
]
train_conf:
    optim_conf:
        lr: 1e-5
"""
    text = published_yaml.model_yaml(FULL) + training
    assert model_yaml.read(write(tmp_path, text=text)) == FULL


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("solver: 'euler'", "solver: 'heun'", "cfm_params.solver is 'heun'.* only 'euler'"),
        ("act_fn: 'gelu'", "act_fn: 'snakebeta'", "estimator.act_fn is 'snakebeta'.* only 'gelu'"),
        ("Qwen2LM", "CosyVoice3LM", r"llm is 'cosyvoice.llm.llm.CosyVoice3LM'.*Qwen2LM'"),
        ("top_k: 25", "top_k: 'many'", "llm.sampling.top_k is 'many'"),
        ("top_k: 25", "top_k: 0", "top_k"),
        ("top_k: 25\n", "top_k: 25\n        temperature: 2\n", "sampling.temperature is an option"),
        ("    output_type: 'mel'\n", "    output_type: 'vec'\n", "flow.output_type is 'vec'"),
        ("    vocab_size: 6561\n", "", "flow.vocab_size is missing"),
        ("    vocab_size: 6561\n", "    vocab_size: 4096\n", "flow.vocab_size is another one"),
        ("chunk_size: 25", "chunk_size: 25.5", "static_chunk_size is 25.5"),
        ("<chunk_size> * <token_mel_ratio>", "<chunk_size>", "in frames"),
        ("<chunk_size> * <token_mel_ratio>", "<chunk> * 2", "static_chunk_size <chunk> is not"),
        ("<llm_output_size>", "<spk_embed_dim>", "llm.llm_output_size is 192.* only 896"),
        ("channels: [256]", "channels: [256, 256]", r"estimator.channels is \[256, 256\]"),
        ("n_fft: 16\n", "n_fft: 16\n        window: hann\n", "istft_params.window is an option"),
        ("fmax: 8000", "fmax: null", "feat_extractor.fmax is None.* only 8000"),
        ("sample_rate: 24000", "sample_rate: 22050", "do not make the sample_rate"),
        ("output_size: 512", "output_size: 256", "encoder.output_size is 256.* only 512"),
        ("hift: !new", "hift: !include:other.yaml\nx: !new", "would read another file"),
        ("flow: !new", "flow: !!python/object/new", "could not determine a constructor"),
        ("hift:", "hift", "cosyvoice2.yaml"),
    ],
)
def test_what_is_not_implemented_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = published_yaml.model_yaml(FULL)
    assert old in text
    path = write(tmp_path, text=text.replace(old, new, 1))
    with pytest.raises(CosyVoiceInitializationError, match=message) as caught:
        model_yaml.read(path)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, EngineLoadError)


def test_all_that_does_not_fit_is_said_at_once(tmp_path: Path) -> None:
    text = published_yaml.model_yaml(FULL).replace("euler", "heun").replace("gelu", "relu")
    with pytest.raises(CosyVoiceInitializationError) as caught:
        model_yaml.read(write(tmp_path, text=text))
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'.* only 'qwen2'"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"num_attention_heads": 13}, "do not divide"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope_type is 'yarn'"),
        ({"hidden_size": 0}, "width"),
        ({"hidden_size": 448}, "llm_input_size is 896.* only 448"),
        ({"num_hidden_layers": "all"}, "num_hidden_layers"),
        ({"head_dim": 128}, "head_dim"),
    ],
)
def test_another_body_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = write(tmp_path)
    config = tmp_path / "CosyVoice-BlankEN/config.json"
    config.write_text(json.dumps(json.loads(config.read_bytes()) | changes))
    with pytest.raises(CosyVoiceInitializationError, match=message):
        model_yaml.read(path)


def test_rope_theta_of_newer_files(tmp_path: Path) -> None:
    path = write(tmp_path)
    config = tmp_path / "CosyVoice-BlankEN/config.json"
    settings = json.loads(config.read_bytes())
    theta = settings.pop("rope_theta")
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    config.write_text(json.dumps(settings))
    assert model_yaml.read(path) == FULL


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CosyVoiceInitializationError, match=r"cosyvoice2\.yaml"):
        model_yaml.read(tmp_path / "cosyvoice2.yaml")
    path = write(tmp_path)
    (tmp_path / "CosyVoice-BlankEN/config.json").unlink()
    with pytest.raises(CosyVoiceInitializationError, match=r"config\.json"):
        model_yaml.read(path)


_TARGETS = ("os.system", "builtins.exec", "builtins.eval", "subprocess.check_call", "pathlib.Path")


@given(
    tag=st.sampled_from(
        ["!new:", "!name:", "!apply:", "!module:", "!include:", "!!python/object/apply:",
         "!!python/name:", "!!python/module:", "!!python/object/new:", "!ref ", "!copy "]
    ),
    target=st.sampled_from(_TARGETS),
    shape=st.sampled_from(["[{0}]", "\n    args: [{0}]", "\n    command: {0}", "{0}"]),
    where=st.sampled_from(["__first: ", "qwen_pretrain_path: ", "solver: ", "sampling: "]),
)  # fmt: skip
def test_nothing_in_the_file_runs(
    tmp_path_factory: pytest.TempPathFactory, tag: str, target: str, shape: str, where: str
) -> None:
    directory = tmp_path_factory.mktemp("yaml")
    trace = directory / "trace"
    code = {"os.system": f"touch {trace}", "subprocess.check_call": f"touch {trace}"}.get(
        target, f"open({str(trace)!r}, 'w')"
    )
    argument = shape.format(json.dumps(code))
    text = published_yaml.model_yaml(FULL)
    evil = f"{where}{tag}{target} {argument}"
    text, found = re.subn(rf"(?m)^(\s*){re.escape(where)}.*$", lambda m: m[1] + evil, text)
    if not found:
        text = f"{evil}\n{text}"
    try:
        model_yaml.read(write(directory, text=text))
    except CosyVoiceInitializationError as error:
        assert "cosyvoice2.yaml" in str(error)
    assert not trace.exists()


@pytest.mark.parametrize(
    "expression",
    ["__import__('os')", "<a>.__class__", "2 ** 99", "<a> if <a> else 1", "<a", "", "[1]", "1/0"],
)
def test_a_reference_is_a_sum_and_nothing_else(expression: str) -> None:
    with pytest.raises(hyper_yaml.HyperYamlError):
        hyper_yaml.resolve(hyper_yaml.Reference(expression), {"a": 1})


def test_sums() -> None:
    def value(expression: str) -> object:
        return hyper_yaml.resolve(hyper_yaml.Reference(expression), names)

    names = {"a": 6, "b": hyper_yaml.Reference("<a> // 4"), "word": "x", "low": -3}
    assert value("<a> * (<b> + 2) - 1") == 17
    assert value("<word>") == "x"
    assert value("2 * <low>") == -6
    with pytest.raises(hyper_yaml.HyperYamlError, match="no number"):
        value("<word> * 2")
    loop = {"a": hyper_yaml.Reference("<b>"), "b": hyper_yaml.Reference("<a> + 1")}
    with pytest.raises(hyper_yaml.HyperYamlError, match="refers to itself"):
        hyper_yaml.resolve(loop["a"], loop)


@pytest.mark.parametrize(
    "text", ["- a", "a: [", "a: " + "[" * 3000, "", "a: !what x", "a: !ref [1]"]
)
def test_what_is_no_such_file_is_refused(text: str) -> None:
    with pytest.raises(hyper_yaml.HyperYamlError):
        hyper_yaml.parse(text)


def test_hyperparameters_are_plain_data() -> None:
    assert msgspec.convert(msgspec.to_builtins(TINY), Hyperparameters) == TINY
