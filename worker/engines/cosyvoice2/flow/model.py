"""The flow: speech tokens to mel frames, by conditional flow matching.

Upstream's ``CausalMaskedDiffWithXvec``. :meth:`Flow.render` makes a whole utterance anew, as
upstream does for every chunk; ``flow_blocks`` makes the next block of one from caches, with the
same result.
"""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voicefleet.worker.engines.cosyvoice2.flow.context import FlowContext, full_context
from voicefleet.worker.engines.cosyvoice2.flow.encoder import Encoder
from voicefleet.worker.engines.cosyvoice2.flow.estimator import GUIDANCE_ROWS, Estimator, moments
from voicefleet.worker.engines.cosyvoice2.hyperparameters import FlowSizes

NOISE_FRAMES = 15_000
"""The noise is a fixed table: no utterance is longer, its prompt included (300 s)."""

NOISE_SEED = 0


@runtime_checkable
class Packable(Protocol):
    """A module that brings its weights into another shape after loading."""

    def pack(self) -> None:
        """Do so, once."""
        ...


class EulerSolver(nn.Module):
    """Follows the estimator's velocity from noise to mel in fixed steps, with guidance."""

    def __init__(self, sizes: FlowSizes) -> None:
        super().__init__()
        self.estimator = Estimator(sizes)
        self.guidance = sizes.guidance
        self.lengths = moments(sizes.steps)[1]

    def forward(
        self, noise: Tensor, mu: Tensor, speaker: Tensor, prompt: Tensor, context: FlowContext
    ) -> Tensor:
        """Solve; the shapes are those of :meth:`Estimator.constants`.

        The state is kept in float32 whatever the model's dtype: ten small steps add up.

        Returns:
            Float32 ``[b, t, bands]``.
        """
        constants = self.estimator.constants(mu, speaker, prompt, context.constants)
        x = noise.float()
        for step, length in enumerate(self.lengths):
            velocity = self.estimator(
                x.to(mu.dtype), constants, step, context.inputs, context.steps[step]
            )
            known, unknown = velocity.float().unbind(1)
            x = torch.add(x, torch.lerp(unknown, known, 1 + self.guidance), alpha=length)
        return x


class Flow(nn.Module):
    """Tokens, a prompt's mel and a speaker to mel.

    ``state_dict`` has the names of the official ``flow.pt`` until :meth:`optimise` is called, which
    has to happen once after loading, on the device and in the dtype to be used.

    Raises:
        ValueError: The sizes ask for other than two frames a token, or for chunks that differ
            between the encoder and the estimator.
    """

    noise: Tensor

    def __init__(self, sizes: FlowSizes) -> None:
        super().__init__()
        if sizes.frames_per_token != 2:
            raise ValueError(f"two frames a token are built in, not {sizes.frames_per_token}")
        if sizes.encoder.chunk * 2 != sizes.estimator.chunk:
            raise ValueError("the encoder's chunks and the estimator's differ in length")
        self.sizes = sizes
        self.input_embedding = nn.Embedding(sizes.vocabulary, sizes.encoder.width)
        self.spk_embed_affine_layer = nn.Linear(sizes.speaker_width, sizes.mel_bands)
        self.encoder = Encoder(sizes.encoder)
        self.encoder_proj = nn.Linear(sizes.encoder.width, sizes.mel_bands)
        self.decoder = EulerSolver(sizes)
        self._optimised = False

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.encoder_proj.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.encoder_proj.weight.device

    @torch.no_grad()
    def optimise(self) -> None:
        """Fuse weights, compute what never changes, drop the originals. Does so once."""
        if self._optimised:
            return
        self._optimised = True
        # Parents first: the estimator takes weights that their own modules would pack.
        for module in list(self.modules()):
            if isinstance(module, Packable):
                module.pack()
        # Upstream draws its table on the CPU; generators elsewhere give other numbers.
        generator = torch.Generator().manual_seed(NOISE_SEED)
        table = torch.randn(
            1, self.sizes.mel_bands, NOISE_FRAMES, generator=generator, device="cpu"
        )
        self.register_buffer("noise", table[0].T.contiguous().to(self.device), persistent=False)

    def speaker(self, embedding: Tensor) -> Tensor:
        """A speaker's embedding as the estimator sees it: ``[b, speaker]`` -> ``[b, bands]``."""
        return self.spk_embed_affine_layer(F.normalize(embedding.to(self.dtype), dim=1))

    def encode(
        self, tokens: Tensor, present: Tensor, positions: list[Tensor], context: FlowContext
    ) -> Tensor:
        """Tokens and look-ahead ``[b, t + lookahead]`` i64 -> ``[b, 2 t, bands]``."""
        x = self.input_embedding(tokens)
        return self.encoder_proj(
            self.encoder(x, present, positions, context.tokens, context.frames)
        )

    @torch.no_grad()
    def render(
        self,
        tokens: Tensor,
        lengths: Tensor,
        prompt_mel: Tensor,
        speaker: Tensor,
        *,
        streaming: bool,
        final: bool,
    ) -> Tensor:
        """Upstream's ``inference`` for a batch: everything from the utterance's start.

        Args:
            tokens: i64 ``[b, t]``, the prompt's first; padded with any token.
            lengths: i64 ``[b]``: how many of them each row has.
            prompt_mel: ``[b, p, bands]``, padded with zeros.
            speaker: ``[b, speaker width]``, not normalised.
            streaming: Attention in chunks, as upstream streams; else each frame sees all.
            final: The utterance ends here; else each row's last tokens are look-ahead.

        Returns:
            Float32 ``[b, 2 t (less the look-ahead), bands]``, the prompt's frames included. Frames
            context a row's own end hold nothing of use.

        Raises:
            ValueError: The prompt's mel is longer than the tokens, or all is longer than the noise.
        """
        self.optimise()
        ahead = self.sizes.encoder.lookahead
        if final:
            tokens, own = F.pad(tokens, (0, ahead)), lengths
        else:
            own = lengths - ahead
        voice = self.speaker(speaker)
        return self.render_own(tokens, lengths, own, prompt_mel, voice, streaming=streaming)

    @torch.no_grad()
    def render_own(
        self,
        tokens: Tensor,
        lengths: Tensor,
        own: Tensor,
        prompt_mel: Tensor,
        speaker: Tensor,
        *,
        streaming: bool,
    ) -> Tensor:
        """As :meth:`render`, where rows differ in how much of their look-ahead is there.

        Args:
            tokens: i64 ``[b, t + lookahead]``.
            lengths: i64 ``[b]``: how many tokens are there; what is not counts as zeros.
            own: i64 ``[b]``: how many of them are rendered; the rest is look-ahead.
            prompt_mel: ``[b, p, bands]``, padded with zeros.
            speaker: From :meth:`speaker`, ``[b, bands]``.
            streaming: Attention in chunks.

        Returns:
            Float32 ``[b, 2 t, bands]``.

        Raises:
            ValueError: As :meth:`render`.
        """
        self.optimise()
        size = tokens.shape[1] - self.sizes.encoder.lookahead
        if not prompt_mel.shape[1] <= 2 * size <= NOISE_FRAMES:
            raise ValueError(f"{prompt_mel.shape[1]} prompt frames, {2 * size} frames in all")
        chunk = self.sizes.encoder.chunk if streaming else None
        chunk_frames = self.sizes.estimator.chunk if streaming else None
        by_token = full_context(own, size, chunk, self.dtype)
        by_frame = full_context(2 * own, 2 * size, chunk_frames, self.dtype)
        rows = (2 * own).repeat_interleave(GUIDANCE_ROWS)
        by_row = full_context(rows, 2 * size, chunk_frames, self.dtype)
        context = FlowContext(by_token, by_frame, by_frame, by_frame, [by_row] * self.sizes.steps)
        present = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        mu = self.encode(tokens, present, self.encoder.positions(size, size), context)
        prompt = F.pad(prompt_mel.to(mu), (0, 0, 0, 2 * size - prompt_mel.shape[1]))
        noise = self.noise[: 2 * size].expand(len(tokens), -1, -1)
        return self.decoder(noise, mu, speaker, prompt, context)
