"""The flow: speech tokens to mel frames, by conditional flow matching.

Upstream's ``CausalMaskedDiffWithXvec``. :meth:`Flow.render` computes an utterance from its start,
as upstream does for every chunk; ``flow.blocks`` computes its next block from caches, with the same
result.
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
"""Frames of the fixed noise table (300 s): no utterance is longer, prompt included."""

NOISE_SEED = 0


@runtime_checkable
class Packable(Protocol):
    """A module that fuses or reshapes its weights after loading."""

    def pack(self) -> None:
        """Fuse or reshape the weights; call once."""
        ...


class EulerSolver(nn.Module):
    """Euler solver: follows the estimator's velocity from noise to mel, with guidance."""

    def __init__(self, sizes: FlowSizes) -> None:
        super().__init__()
        self.estimator = Estimator(sizes)
        self.guidance = sizes.guidance
        self.lengths = moments(sizes.steps)[1]

    def forward(
        self, noise: Tensor, mu: Tensor, speaker: Tensor, prompt: Tensor, context: FlowContext
    ) -> Tensor:
        """Solve; :meth:`Estimator.constants` gives the shapes.

        The state is float32 whatever the model's dtype: rounding errors add up over ten steps.

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
    """Makes mel frames of tokens, a prompt's mel and a speaker.

    ``state_dict`` has the names of the official ``flow.pt`` until :meth:`optimise` is called. Call
    that once after loading, on the final device and in the final dtype.

    Raises:
        ValueError: ``sizes`` has not two frames for each token, or the chunks of encoder and
            estimator differ in duration.
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
        """The dtype that the model computes in."""
        return self.encoder_proj.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return self.encoder_proj.weight.device

    @torch.no_grad()
    def optimise(self) -> None:
        """Fuse weights, precompute constants and drop the originals. Further calls do nothing."""
        if self._optimised:
            return
        self._optimised = True
        # Parents first: the estimator takes weights that its submodules would pack otherwise.
        for module in list(self.modules()):
            if isinstance(module, Packable):
                module.pack()
        # Upstream draws its table on the CPU; other devices' generators give other numbers.
        generator = torch.Generator().manual_seed(NOISE_SEED)
        table = torch.randn(
            1, self.sizes.mel_bands, NOISE_FRAMES, generator=generator, device="cpu"
        )
        self.register_buffer("noise", table[0].T.contiguous().to(self.device), persistent=False)

    def speaker(self, embedding: Tensor) -> Tensor:
        """Project a speaker's embedding for the estimator: ``[b, speaker]`` -> ``[b, bands]``."""
        return self.spk_embed_affine_layer(F.normalize(embedding.to(self.dtype), dim=1))

    def encode(
        self, tokens: Tensor, present: Tensor, positions: list[Tensor], context: FlowContext
    ) -> Tensor:
        """Encode tokens and look-ahead, i64 ``[b, t + lookahead]`` -> ``[b, 2 t, bands]``."""
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
        """Compute a batch of utterances from their start, as upstream's ``inference`` does.

        Args:
            tokens: i64 ``[b, t]``: the prompt's, then the utterance's; padded with any token.
            lengths: i64 ``[b]``: how many tokens each row has.
            prompt_mel: ``[b, p, bands]``, padded with zeros.
            speaker: ``[b, speaker width]``, not normalised.
            streaming: Use the streaming attention mask; else each frame attends to all.
            final: Whether the utterance ends here; else each row's last tokens are look-ahead.

        Returns:
            Float32 ``[b, 2 t (less the look-ahead), bands]``, the prompt's frames included. Frames
            context a row's own end are undefined.

        Raises:
            ValueError: The prompt's mel is longer than the tokens, or the utterance longer than the
                noise table.
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
        """As :meth:`render`, for rows that differ in how much of their look-ahead is known.

        Args:
            tokens: i64 ``[b, t + lookahead]``.
            lengths: i64 ``[b]``: how many tokens are known; the others count as zeros.
            own: i64 ``[b]``: how many of them are rendered; the others are look-ahead.
            prompt_mel: ``[b, p, bands]``, padded with zeros.
            speaker: From :meth:`speaker`, ``[b, bands]``.
            streaming: Use the streaming attention mask.

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
