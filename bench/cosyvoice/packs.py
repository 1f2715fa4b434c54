"""Packs of random weights, written once and kept for later runs."""

import tempfile
from pathlib import Path
from typing import Final, Literal

from voicefleet.worker.voicepacks import voicepack
from voicefleet.worker.voicepacks.voicepack import Voicepack

PackName = Literal["tiny", "full"]

KEPT: Final = Path(tempfile.gettempdir()) / "voicefleet-bench-packs"


def pack_of(name: PackName, directory: Path = KEPT) -> Voicepack:
    """The pack ``cosyvoice2-<name>`` below ``directory``; it is written if it is missing."""
    from voicefleet.worker.engines.cosyvoice2.pack import (  # noqa: PLC0415  torch, for a pack only
        random_pack,
    )

    model = f"cosyvoice2-{name}"
    folder = directory / "cosyvoice2" / name
    if not (folder / "metadata.yaml").exists():
        random_pack.write(folder, random_pack.MODELS[model], 0, model)
    return voicepack.read(folder)


if __name__ == "__main__":
    import sys

    for size in sys.argv[2:]:
        print(pack_of(size, Path(sys.argv[1])).directory)
