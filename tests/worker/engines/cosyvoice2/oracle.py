"""Upstream's own modules with random weights: what ours are compared with.

They come from PyPI's ``cosyvoice2-eu``, whose flow and vocoder equal upstream's bit for bit. Its
package drags in training frameworks that inference does without: those are stubbed.
"""

import importlib
import sys
import types
from typing import Any

import torch

from voicefleet.worker.engines.cosyvoice2.hyperparameters import Hyperparameters


def _stub(name: str, **names: object) -> None:
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__dict__.update(names)
        sys.modules[name] = module


def import_upstream() -> None:
    """Make ``cosyvoice`` importable without hydra, lightning, gdown, wget and whisper."""
    package = types.ModuleType("matcha.utils")
    package.__path__ = []
    sys.modules.setdefault("matcha.utils", package)

    def get_pylogger(name: str = "") -> Any:
        import logging

        return logging.getLogger(name)

    _stub("matcha.utils.pylogger", get_pylogger=get_pylogger)


def flow(sizes: Hyperparameters, seed: int = 0) -> Any:
    import_upstream()
    torch.manual_seed(seed)
    encoder_module = importlib.import_module("cosyvoice.transformer.upsample_encoder")
    decoder_module = importlib.import_module("cosyvoice.flow.decoder")
    matching = importlib.import_module("cosyvoice.flow.flow_matching")
    flow_module = importlib.import_module("cosyvoice.flow.flow")
    from omegaconf import DictConfig

    e, d, f = sizes.flow.encoder, sizes.flow.estimator, sizes.flow
    encoder = encoder_module.UpsampleConformerEncoder(
        output_size=e.width,
        attention_heads=e.heads,
        linear_units=e.mlp,
        num_blocks=e.blocks,
        dropout_rate=0.1,
        positional_dropout_rate=0.1,
        attention_dropout_rate=0.1,
        normalize_before=True,
        input_layer="linear",
        pos_enc_layer_type="rel_pos_espnet",
        selfattention_layer_type="rel_selfattn",
        input_size=e.width,
        use_cnn_module=False,
        macaron_style=False,
        static_chunk_size=e.chunk,
    )
    estimator = decoder_module.CausalConditionalDecoder(
        in_channels=4 * f.mel_bands,
        out_channels=f.mel_bands,
        channels=[d.channels],
        dropout=0.0,
        attention_head_dim=d.head_width,
        n_blocks=d.transformers,
        num_mid_blocks=d.mid_blocks,
        num_heads=d.heads,
        act_fn="gelu",
        static_chunk_size=d.chunk,
        num_decoding_left_chunks=-1,
    )
    cfm = DictConfig(
        {
            "sigma_min": 1e-06,
            "solver": "euler",
            "t_scheduler": "cosine",
            "training_cfg_rate": 0.2,
            "inference_cfg_rate": f.guidance,
            "reg_loss_type": "l1",
        }
    )
    decoder = matching.CausalConditionalCFM(
        in_channels=3 * f.mel_bands,
        cfm_params=cfm,
        n_spks=1,
        spk_emb_dim=f.mel_bands,
        estimator=estimator,
    )
    torch.manual_seed(seed + 1)  # the decoder seeds every source of randomness on its own
    module = flow_module.CausalMaskedDiffWithXvec(
        input_size=e.width,
        output_size=f.mel_bands,
        spk_embed_dim=f.speaker_width,
        output_type="mel",
        vocab_size=f.vocabulary,
        input_frame_rate=sizes.token_rate,
        only_mask_loss=True,
        token_mel_ratio=f.frames_per_token,
        pre_lookahead_len=e.lookahead,
        encoder=encoder,
        decoder=decoder,
    )
    return module.eval()


def vocoder(sizes: Hyperparameters, seed: int = 0, f0_hz: float = 150.0) -> Any:
    """HiFT; its F0 predictor is biased to about ``f0_hz``, without which all is unvoiced."""
    import_upstream()
    torch.manual_seed(seed)
    generator = importlib.import_module("cosyvoice.hifigan.generator")
    f0 = importlib.import_module("cosyvoice.hifigan.f0_predictor")
    v = sizes.vocoder
    module = generator.HiFTGenerator(
        in_channels=v.mel_bands,
        base_channels=v.channels,
        nb_harmonics=v.harmonics,
        sampling_rate=v.sample_rate,
        nsf_alpha=v.source_amplitude,
        nsf_sigma=v.source_noise,
        nsf_voiced_threshold=v.voiced_threshold,
        upsample_rates=list(v.upsampling),
        upsample_kernel_sizes=list(v.upsampling_kernels),
        istft_params={"n_fft": v.fft, "hop_len": v.fft_hop},
        resblock_kernel_sizes=list(v.kernels),
        resblock_dilation_sizes=[list(d) for d in v.dilations],
        source_resblock_kernel_sizes=list(v.source_kernels),
        source_resblock_dilation_sizes=[list(d) for d in v.source_dilations],
        lrelu_slope=v.slope,
        audio_limit=v.limit,
        f0_predictor=f0.ConvRNNF0Predictor(
            num_class=1, in_channels=v.mel_bands, cond_channels=v.f0_channels
        ),
    )
    with torch.no_grad():
        module.f0_predictor.classifier.weight.mul_(20.0)
        module.f0_predictor.classifier.bias.fill_(f0_hz)
    return module.eval()


def language_model(sizes: Hyperparameters, seed: int = 0) -> Any:
    """Qwen2LM. Its decode step gets no mask, which newer transformers would misread."""
    import_upstream()
    torch.manual_seed(seed)
    llm = importlib.import_module("cosyvoice.llm.llm")
    common = importlib.import_module("cosyvoice.utils.common")
    from functools import partial

    from transformers import Qwen2Config, Qwen2ForCausalLM

    s = sizes.language_model

    class Body(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = Qwen2Config(
                vocab_size=s.vocabulary,
                hidden_size=s.width,
                intermediate_size=s.mlp,
                num_hidden_layers=s.layers,
                num_attention_heads=s.heads,
                num_key_value_heads=s.kv_heads,
                rms_norm_eps=s.norm_eps,
                rope_theta=s.rope_theta,
                tie_word_embeddings=True,
                max_position_embeddings=32768,
            )
            self.model = Qwen2ForCausalLM(config)
            self.hidden_size = s.width

        def forward_one_step(self, xs: Any, masks: Any, cache: Any = None) -> Any:
            outs = self.model(
                inputs_embeds=xs,
                attention_mask=None,
                output_hidden_states=True,
                return_dict=True,
                use_cache=True,
                past_key_values=cache,
            )
            return outs.hidden_states[-1], outs.past_key_values

    ras = partial(
        common.ras_sampling,
        top_p=s.sampling.top_p,
        top_k=s.sampling.top_k,
        win_size=s.sampling.window,
        tau_r=s.sampling.tau,
    )
    module = llm.Qwen2LM(
        llm_input_size=s.width,
        llm_output_size=s.width,
        speech_token_size=s.speech_tokens,
        length_normalized_loss=True,
        lsm_weight=0,
        mix_ratio=list(s.mix),
        llm=Body(),
        sampling=ras,
    )
    return module.eval()
