"""The vocoder's pitch predictor (HiFTNet, arXiv:2309.09493, section 2.1)."""

from torch import Tensor, nn

from voicefleet.worker.engines.cosyvoice2.hyperparameters import VocoderSizes

LAYERS = 5
"""Convolutions, each of kernel three: one frame of context on either side."""


class F0Predictor(nn.Module):
    """Predicts each mel frame's fundamental frequency, as upstream's ``ConvRNNF0Predictor``."""

    def __init__(self, sizes: VocoderSizes) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = sizes.mel_bands
        for _ in range(LAYERS):
            layers += [nn.Conv1d(channels, sizes.f0_channels, 3, padding=1), nn.ELU(inplace=True)]
            channels = sizes.f0_channels
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-mel ``[B, mel_bands, W]`` to Hz ``[B, W]``, both in the dtype of the weights.

        ``mask`` ``[B, 1, W]`` is 0 for padding: it affects no other frame, and gets 0 Hz.
        """
        x: Tensor = mel.to(self.classifier.weight.dtype)
        if mask is None:
            x = self.condnet(x)
        else:
            mask = mask.to(x.dtype)
            x = x * mask
            for layer in self.condnet:
                x = layer(x)
                if not isinstance(layer, nn.Conv1d):
                    x = x.mul_(mask)
        hz: Tensor = self.classifier(x.transpose(1, 2))
        hz = hz.squeeze(-1).abs()
        return hz if mask is None else hz.mul_(mask.squeeze(1))
