"""Reads hyperparameters from ``cosyvoice2.yaml`` and the ``config.json`` of its Qwen2.

The published file describes Python objects to construct; here it is read as data. Each component's
class must be the one that this engine implements; each argument is read, or must have the value
that is implemented. One error names everything that does not fit.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import yaml

from voicefleet.worker import plain_yaml
from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.hyperparameters import (
    EncoderSizes,
    EstimatorSizes,
    FlowSizes,
    Hyperparameters,
    LanguageModelSizes,
    Sampling,
    VocoderSizes,
)
from voicefleet.worker.engines.cosyvoice2.pack import layout, qwen_config
from voicefleet.worker.engines.cosyvoice2.pack.arguments import Arguments
from voicefleet.worker.engines.cosyvoice2.pack.hyper_yaml import HyperYamlError, parse

_FEATURES = {"n_fft": 1920, "num_mels": 80, "hop_size": 480, "win_size": 1920, "fmin": 0}
"""The only parameters that the engine implements for prompts' mel spectrograms."""


def read(path: Path) -> Hyperparameters:
    """Read ``path`` (a ``cosyvoice2.yaml``) and the ``CosyVoice-BlankEN/config.json`` beside it.

    Nothing that the file names is imported or run. Parts that only training needs are ignored.

    Raises:
        CosyVoiceInitializationError: A file cannot be read, or asks for an architecture that this
            engine does not implement. The message names every such key, and what is supported.
    """
    problems: list[str] = []
    try:
        names = parse(plain_yaml.read(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, HyperYamlError) as error:
        raise CosyVoiceInitializationError(f"{path}: {error}") from None
    top = Arguments("", names, names, problems)
    qwen = qwen_config.read(path.parent / layout.QWEN / "config.json")
    found = Hyperparameters(
        token_rate=top.value("token_frame_rate", int, 25),
        language_model=_language_model(
            top.component("llm", "cosyvoice.llm.llm.Qwen2LM"), qwen, problems
        ),
        flow=_flow(top.component("flow", "cosyvoice.flow.flow.CausalMaskedDiffWithXvec")),
        vocoder=_vocoder(top.component("hift", "cosyvoice.hifigan.generator.HiFTGenerator")),
    )
    if "feat_extractor" in names:
        features = top.component("feat_extractor", "matcha.utils.audio.mel_spectrogram")
        for key, value in _FEATURES.items():
            features.only(key, value)
        features.only("sampling_rate", found.sample_rate)
        features.only("fmax", 8000)
        features.only("center", False)
    if "get_tokenizer" in names:
        tokenizer = "cosyvoice.tokenizer.tokenizer.get_qwen_tokenizer"
        top.component("get_tokenizer", tokenizer).only("version", "cosyvoice2")
    if not problems:
        problems += _inconsistencies(found)
    if problems:
        raise CosyVoiceInitializationError("\n".join(f"{path}: {line}" for line in problems))
    return found


def _language_model(
    llm: Arguments, qwen: LanguageModelSizes, problems: list[str]
) -> LanguageModelSizes:
    llm.only("llm_input_size", qwen.width)
    llm.only("llm_output_size", qwen.width)
    llm.component("llm", "cosyvoice.llm.llm.Qwen2Encoder").done("pretrain_path")
    ras = llm.component("sampling", "cosyvoice.utils.common.ras_sampling")
    default = Sampling()
    sizes = msgspec.structs.replace(
        qwen,
        speech_tokens=llm.value("speech_token_size", int, qwen.speech_tokens),
        mix=llm.value("mix_ratio", tuple[int, int], qwen.mix),
        sampling=Sampling(
            top_p=ras.value("top_p", float, default.top_p),
            top_k=ras.value("top_k", int, default.top_k),
            window=ras.value("win_size", int, default.window),
            tau=ras.value("tau_r", float, default.tau),
        ),
    )
    ras.done()
    llm.done("length_normalized_loss", "lsm_weight")
    return sizes


def _flow(flow: Arguments) -> FlowSizes:
    encoder = flow.component(
        "encoder", "cosyvoice.transformer.upsample_encoder.UpsampleConformerEncoder"
    )
    decoder = flow.component("decoder", "cosyvoice.flow.flow_matching.CausalConditionalCFM")
    matching = decoder.mapping("cfm_params")
    estimator = decoder.component("estimator", "cosyvoice.flow.decoder.CausalConditionalDecoder")
    default = FlowSizes()
    sizes = FlowSizes(
        vocabulary=flow.value("vocab_size", int, default.vocabulary),
        mel_bands=flow.value("output_size", int, default.mel_bands),
        speaker_width=flow.value("spk_embed_dim", int, default.speaker_width),
        frames_per_token=flow.value("token_mel_ratio", int, default.frames_per_token),
        guidance=matching.value("inference_cfg_rate", float, default.guidance),
        encoder=_encoder(encoder),
        estimator=_estimator(estimator),
    )
    bands = sizes.mel_bands
    flow.only("input_size", sizes.encoder.width)
    flow.only("output_type", "mel")
    flow.only("pre_lookahead_len", sizes.encoder.lookahead)
    flow.done("input_frame_rate", "only_mask_loss", "decoder_conf")
    matching.only("solver", "euler")
    matching.only("t_scheduler", "cosine")
    matching.done("sigma_min", "training_cfg_rate", "reg_loss_type")
    decoder.only("in_channels", 3 * bands)
    decoder.only("n_spks", 1)
    decoder.only("spk_emb_dim", bands)
    decoder.done()
    estimator.only("in_channels", 4 * bands)
    estimator.only("out_channels", bands)
    estimator.done("dropout")
    return sizes


def _encoder(encoder: Arguments) -> EncoderSizes:
    default = EncoderSizes()
    for key, value in _ENCODER_FIXED.items():
        encoder.only(key, value)
    sizes = EncoderSizes(
        width=encoder.value("output_size", int, default.width),
        heads=encoder.value("attention_heads", int, default.heads),
        mlp=encoder.value("linear_units", int, default.mlp),
        blocks=encoder.value("num_blocks", int, default.blocks),
        chunk=encoder.value("static_chunk_size", int, default.chunk),
    )
    encoder.only("input_size", sizes.width)
    encoder.done("dropout_rate", "positional_dropout_rate", "attention_dropout_rate")
    return sizes


_ENCODER_FIXED: dict[str, object] = {
    # Upstream's convolutions around the encoder are 512 wide whatever the file says.
    "output_size": 512,
    "normalize_before": True,
    "input_layer": "linear",
    "pos_enc_layer_type": "rel_pos_espnet",
    "selfattention_layer_type": "rel_selfattn",
    "use_cnn_module": False,
    "macaron_style": False,
}


def _estimator(estimator: Arguments) -> EstimatorSizes:
    default = EstimatorSizes()
    estimator.only("act_fn", "gelu")
    estimator.only("num_decoding_left_chunks", -1)
    (channels,) = estimator.value("channels", tuple[int], (default.channels,))
    return EstimatorSizes(
        channels=channels,
        head_width=estimator.value("attention_head_dim", int, default.head_width),
        heads=estimator.value("num_heads", int, default.heads),
        transformers=estimator.value("n_blocks", int, default.transformers),
        mid_blocks=estimator.value("num_mid_blocks", int, default.mid_blocks),
        chunk=estimator.value("static_chunk_size", int, default.chunk),
    )


_Counts = tuple[int, ...]
_Dilations = tuple[tuple[int, ...], ...]


def _vocoder(hift: Arguments) -> VocoderSizes:
    stft = hift.mapping("istft_params")
    f0 = hift.component("f0_predictor", "cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor")
    d = VocoderSizes()
    sizes = VocoderSizes(
        sample_rate=hift.value("sampling_rate", int, d.sample_rate),
        mel_bands=hift.value("in_channels", int, d.mel_bands),
        channels=hift.value("base_channels", int, d.channels),
        harmonics=hift.value("nb_harmonics", int, d.harmonics),
        source_amplitude=hift.value("nsf_alpha", float, d.source_amplitude),
        source_noise=hift.value("nsf_sigma", float, d.source_noise),
        voiced_threshold=hift.value("nsf_voiced_threshold", float, d.voiced_threshold),
        upsampling=hift.value("upsample_rates", _Counts, d.upsampling),
        upsampling_kernels=hift.value("upsample_kernel_sizes", _Counts, d.upsampling_kernels),
        fft=stft.value("n_fft", int, d.fft),
        fft_hop=stft.value("hop_len", int, d.fft_hop),
        kernels=hift.value("resblock_kernel_sizes", _Counts, d.kernels),
        dilations=hift.value("resblock_dilation_sizes", _Dilations, d.dilations),
        source_kernels=hift.value("source_resblock_kernel_sizes", _Counts, d.source_kernels),
        source_dilations=hift.value(
            "source_resblock_dilation_sizes", _Dilations, d.source_dilations
        ),
        slope=hift.value("lrelu_slope", float, d.slope),
        limit=hift.value("audio_limit", float, d.limit),
        f0_channels=f0.value("cond_channels", int, d.f0_channels),
    )
    f0.only("in_channels", sizes.mel_bands)
    f0.only("num_class", 1)
    f0.done()
    stft.done()
    hift.done()
    return sizes


def _inconsistencies(found: Hyperparameters) -> Sequence[str]:
    """Problems between the values of different keys."""
    flow, vocoder = found.flow, found.vocoder
    checks = (
        (flow.mel_bands == vocoder.mel_bands == 80, "flow and hift must have 80 mel bands"),
        (flow.vocabulary == found.language_model.speech_tokens, "flow.vocab_size is another one"),
        (flow.encoder.width % flow.encoder.heads == 0, "flow.encoder.attention_heads must divide"),
        (
            flow.estimator.chunk == flow.encoder.chunk * flow.frames_per_token,
            "flow.decoder.estimator.static_chunk_size must be the encoder's, in frames",
        ),
        (
            found.token_rate * found.samples_per_token == found.sample_rate,
            "token_frame_rate, token_mel_ratio and the hop of hift do not make the sample_rate",
        ),
        (
            len(vocoder.upsampling) == len(vocoder.upsampling_kernels)
            and len(vocoder.upsampling) == len(vocoder.source_kernels)
            and len(vocoder.source_kernels) == len(vocoder.source_dilations)
            and len(vocoder.kernels) == len(vocoder.dilations),
            "hift's rates, kernels and dilations differ in number",
        ),
    )
    try:  # bounds of each size
        msgspec.convert(msgspec.to_builtins(found), Hyperparameters)
    except msgspec.ValidationError as error:
        return [str(error)]
    return [message for fits, message in checks if not fits]
