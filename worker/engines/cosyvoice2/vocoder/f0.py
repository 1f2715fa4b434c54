"""The vocoder's pitch: convolutions over mel frames (HiFTNet, arXiv:2309.09493, section 2.1)."""

from torch import Tensor, nn

from worker.engines.cosyvoice2.hyperparameters import VocoderSizes

LAYERS = 5
"""Each looks one frame to either side."""


class F0Predictor(nn.Module):
    """One fundamental frequency for each mel frame. Equals upstream's ``ConvRNNF0Predictor``."""

    def __init__(self, sizes: VocoderSizes) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = sizes.mel_bands
        for _ in range(LAYERS):
            layers += [nn.Conv1d(channels, sizes.f0_channels, 3, padding=1), nn.ELU(inplace=True)]
            channels = sizes.f0_channels
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel ``[B, mel_bands, W]`` to Hz ``[B, W]``, both in the dtype of the weights."""
        x: Tensor = self.condnet(mel.to(self.classifier.weight.dtype))
        hz: Tensor = self.classifier(x.transpose(1, 2))
        return hz.squeeze(-1).abs()
