"""Where the configurations that come with voicefleet are."""

from importlib.util import find_spec
from pathlib import Path

from producer.cli.failure import Failure


def locate(config: Path | None, default: str) -> Path:
    """``config`` if it is given; else ``configs/<default>`` here or as it was shipped."""
    if config is not None:
        if not config.is_file():
            raise Failure(f"there is no configuration {config}")
        return config
    spec = find_spec("worker")
    if spec is None or spec.origin is None:
        raise Failure("the worker's side is not installed here")
    package = Path(spec.origin).parent
    candidates = [
        Path("configs", default),
        package / "share" / "configs" / default,
        package.parent / "configs" / default,
    ]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise Failure(f"there is no configs/{default}: name one with --config")
