"""Writes ``cosyvoice2.yaml`` and Qwen2's ``config.json`` in the published form, for any sizes.

Upstream's loader can read them.
"""

import json

from voicefleet.worker.engines.cosyvoice2.hyperparameters import Hyperparameters


def model_yaml(sizes: Hyperparameters) -> str:
    """The text of ``cosyvoice2.yaml``, from which ``model_yaml.read`` restores ``sizes``."""
    flow, vocoder = sizes.flow, sizes.vocoder
    sampling, encoder, estimator = sizes.language_model.sampling, flow.encoder, flow.estimator
    return _TEMPLATE.format(
        llm=sizes.language_model,
        flow=flow,
        hift=vocoder,
        sampling=sampling,
        encoder=encoder,
        estimator=estimator,
        token_rate=sizes.token_rate,
        mix=list(sizes.language_model.mix),
        cfm_channels=3 * flow.mel_bands,
        estimator_channels=4 * flow.mel_bands,
        rates=list(vocoder.upsampling),
        rate_kernels=list(vocoder.upsampling_kernels),
        kernels=list(vocoder.kernels),
        dilations=[list(each) for each in vocoder.dilations],
        source_kernels=list(vocoder.source_kernels),
        source_dilations=[list(each) for each in vocoder.source_dilations],
        hop=vocoder.hop,
    )


def qwen_config(sizes: Hyperparameters) -> bytes:
    """The JSON of ``config.json``."""
    llm = sizes.language_model
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": llm.width,
        "initializer_range": 0.02,
        "intermediate_size": llm.mlp,
        "max_position_embeddings": 32768,
        "max_window_layers": llm.layers,
        "model_type": "qwen2",
        "num_attention_heads": llm.heads,
        "num_hidden_layers": llm.layers,
        "num_key_value_heads": llm.kv_heads,
        "rms_norm_eps": llm.norm_eps,
        "rope_theta": llm.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": llm.vocabulary,
    }
    return json.dumps(config, indent=2).encode() + b"\n"


_TEMPLATE = """\
sample_rate: {hift.sample_rate}
llm_input_size: {llm.width}
llm_output_size: {llm.width}
spk_embed_dim: {flow.speaker_width}
qwen_pretrain_path: ''
token_frame_rate: {token_rate}
token_mel_ratio: {flow.frames_per_token}
chunk_size: {encoder.chunk}
num_decoding_left_chunks: -1

llm: !new:cosyvoice.llm.llm.Qwen2LM
    llm_input_size: !ref <llm_input_size>
    llm_output_size: !ref <llm_output_size>
    speech_token_size: {llm.speech_tokens}
    length_normalized_loss: True
    lsm_weight: 0
    mix_ratio: {mix}
    llm: !new:cosyvoice.llm.llm.Qwen2Encoder
        pretrain_path: !ref <qwen_pretrain_path>
    sampling: !name:cosyvoice.utils.common.ras_sampling
        top_p: {sampling.top_p}
        top_k: {sampling.top_k}
        win_size: {sampling.window}
        tau_r: {sampling.tau}

flow: !new:cosyvoice.flow.flow.CausalMaskedDiffWithXvec
    input_size: {encoder.width}
    output_size: {flow.mel_bands}
    spk_embed_dim: !ref <spk_embed_dim>
    output_type: 'mel'
    vocab_size: {flow.vocabulary}
    input_frame_rate: !ref <token_frame_rate>
    only_mask_loss: True
    token_mel_ratio: !ref <token_mel_ratio>
    pre_lookahead_len: {encoder.lookahead}
    encoder: !new:cosyvoice.transformer.upsample_encoder.UpsampleConformerEncoder
        output_size: {encoder.width}
        attention_heads: {encoder.heads}
        linear_units: {encoder.mlp}
        num_blocks: {encoder.blocks}
        dropout_rate: 0.1
        positional_dropout_rate: 0.1
        attention_dropout_rate: 0.1
        normalize_before: True
        input_layer: 'linear'
        pos_enc_layer_type: 'rel_pos_espnet'
        selfattention_layer_type: 'rel_selfattn'
        input_size: {encoder.width}
        use_cnn_module: False
        macaron_style: False
        static_chunk_size: !ref <chunk_size>
    decoder: !new:cosyvoice.flow.flow_matching.CausalConditionalCFM
        in_channels: {cfm_channels}
        n_spks: 1
        spk_emb_dim: {flow.mel_bands}
        cfm_params: !new:omegaconf.DictConfig
            content:
                sigma_min: 1e-06
                solver: 'euler'
                t_scheduler: 'cosine'
                training_cfg_rate: 0.2
                inference_cfg_rate: {flow.guidance}
                reg_loss_type: 'l1'
        estimator: !new:cosyvoice.flow.decoder.CausalConditionalDecoder
            in_channels: {estimator_channels}
            out_channels: {flow.mel_bands}
            channels: [{estimator.channels}]
            dropout: 0.0
            attention_head_dim: {estimator.head_width}
            n_blocks: {estimator.transformers}
            num_mid_blocks: {estimator.mid_blocks}
            num_heads: {estimator.heads}
            act_fn: 'gelu'
            static_chunk_size: !ref <chunk_size> * <token_mel_ratio>
            num_decoding_left_chunks: !ref <num_decoding_left_chunks>

hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    in_channels: {hift.mel_bands}
    base_channels: {hift.channels}
    nb_harmonics: {hift.harmonics}
    sampling_rate: !ref <sample_rate>
    nsf_alpha: {hift.source_amplitude}
    nsf_sigma: {hift.source_noise}
    nsf_voiced_threshold: {hift.voiced_threshold}
    upsample_rates: {rates}
    upsample_kernel_sizes: {rate_kernels}
    istft_params:
        n_fft: {hift.fft}
        hop_len: {hift.fft_hop}
    resblock_kernel_sizes: {kernels}
    resblock_dilation_sizes: {dilations}
    source_resblock_kernel_sizes: {source_kernels}
    source_resblock_dilation_sizes: {source_dilations}
    lrelu_slope: {hift.slope}
    audio_limit: {hift.limit}
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor
        num_class: 1
        in_channels: {hift.mel_bands}
        cond_channels: {hift.f0_channels}

get_tokenizer: !name:cosyvoice.tokenizer.tokenizer.get_qwen_tokenizer
    token_path: !ref <qwen_pretrain_path>
    skip_special_tokens: True
allowed_special: 'all'
feat_extractor: !name:matcha.utils.audio.mel_spectrogram
    n_fft: 1920
    num_mels: {flow.mel_bands}
    sampling_rate: !ref <sample_rate>
    hop_size: {hop}
    win_size: 1920
    fmin: 0
    fmax: 8000
    center: False
"""
