"""The sizes of a CosyVoice 2 model. The defaults are those of the published CosyVoice2-0.5B."""

from typing import Annotated

import msgspec
from msgspec import Meta

Size = Annotated[int, Meta(ge=1, le=2**20)]
Count = Annotated[int, Meta(ge=1, le=256)]
"""A number of modules or steps that are built one by one."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """Repetition-aware sampling (VALL-E 2, arXiv:2406.05370, section 3.2).

    A token is drawn from the nucleus (``top_p``, at most ``top_k`` tokens). If it occurs at least
    ``window * tau`` times among the last ``window`` tokens, another one is drawn from the whole
    distribution without it.
    """

    top_p: float = 0.8
    top_k: Size = 25
    window: Size = 10
    tau: float = 0.1


class LanguageModelSizes(msgspec.Struct, frozen=True, kw_only=True):
    """The Qwen2 body and the speech head.

    ``speech_tokens`` counts the codes; three control tokens follow them. ``mix`` is how streamed
    text is interleaved: so many text tokens, then so many speech tokens.
    """

    vocabulary: Size = 151_936
    width: Size = 896
    layers: Count = 24
    heads: Size = 14
    kv_heads: Size = 2
    mlp: Size = 4864
    norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    speech_tokens: Size = 6561
    mix: tuple[Size, Size] = (5, 15)
    sampling: Sampling = Sampling()

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def end_token(self) -> int:
        """The first control token, which ends an utterance. Each of the three stops decoding."""
        return self.speech_tokens

    @property
    def fill_token(self) -> int:
        """The third control token: it asks for more of a streamed text."""
        return self.speech_tokens + 2


class EncoderSizes(msgspec.Struct, frozen=True, kw_only=True):
    """The flow's token encoder: a conformer before and one after x2 upsampling.

    ``chunk`` is the width of the streaming attention mask in tokens.
    """

    width: Size = 512
    heads: Size = 8
    mlp: Size = 2048
    blocks: Count = 6
    up_blocks: Count = 4
    lookahead: Size = 3
    chunk: Size = 25


class EstimatorSizes(msgspec.Struct, frozen=True, kw_only=True):
    """The flow's causal U-Net, which has one level: ``mid_blocks`` between a down and an up block.

    ``chunk`` is the width of the streaming attention mask in mel frames.
    """

    channels: Size = 256
    head_width: Size = 64
    heads: Size = 8
    transformers: Count = 4
    mid_blocks: Count = 12
    chunk: Size = 50


class FlowSizes(msgspec.Struct, frozen=True, kw_only=True):
    """Speech tokens to mel frames by flow matching, ``steps`` Euler steps with guidance."""

    vocabulary: Size = 6561
    mel_bands: Size = 80
    speaker_width: Size = 192
    frames_per_token: Size = 2
    steps: Count = 10
    guidance: float = 0.7
    encoder: EncoderSizes = EncoderSizes()
    estimator: EstimatorSizes = EstimatorSizes()


class VocoderSizes(msgspec.Struct, frozen=True, kw_only=True):
    """HiFT (arXiv:2309.09493): mel frames to samples, by a harmonic source and an inverse STFT."""

    sample_rate: Size = 24_000
    mel_bands: Size = 80
    channels: Size = 512
    harmonics: Annotated[int, Meta(ge=0, le=256)] = 8
    source_amplitude: float = 0.1
    source_noise: float = 0.003
    voiced_threshold: float = 10.0
    upsampling: tuple[Size, ...] = (8, 5, 3)
    upsampling_kernels: tuple[Size, ...] = (16, 11, 7)
    fft: Size = 16
    fft_hop: Size = 4
    kernels: tuple[Size, ...] = (3, 7, 11)
    dilations: tuple[tuple[Size, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    source_kernels: tuple[Size, ...] = (7, 7, 11)
    source_dilations: tuple[tuple[Size, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    slope: float = 0.1
    limit: float = 0.99
    f0_channels: Size = 512

    @property
    def hop(self) -> int:
        """Samples for each mel frame."""
        hop = self.fft_hop
        for factor in self.upsampling:
            hop *= factor
        return hop


class Hyperparameters(msgspec.Struct, frozen=True, kw_only=True):
    """A whole model. ``token_rate`` is in speech tokens per second."""

    token_rate: Size = 25
    language_model: LanguageModelSizes = LanguageModelSizes()
    flow: FlowSizes = FlowSizes()
    vocoder: VocoderSizes = VocoderSizes()

    @property
    def sample_rate(self) -> int:
        """The sample rate of the model's audio, in Hz."""
        return self.vocoder.sample_rate

    @property
    def samples_per_token(self) -> int:
        """Samples for each speech token, at the model's rate."""
        return self.flow.frames_per_token * self.vocoder.hop


TINY = Hyperparameters(
    language_model=LanguageModelSizes(
        vocabulary=512, width=64, layers=2, heads=4, kv_heads=2, mlp=128
    ),
    flow=FlowSizes(
        encoder=EncoderSizes(mlp=128, blocks=1),
        estimator=EstimatorSizes(channels=64, head_width=16, heads=2, transformers=1, mid_blocks=2),
    ),
    vocoder=VocoderSizes(channels=64, f0_channels=32),
)
"""The same architecture, small enough for tests. The encoder's width is fixed by upstream."""
