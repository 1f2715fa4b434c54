"""The configurations that come with voicefleet, and how ``--config`` finds one."""

from pathlib import Path

from voicefleet import installation
from voicefleet.cli.failure import Failure


def locate(config: Path | None, default: str = "") -> Path:
    """The configuration file that ``--config`` means.

    Args:
        config: A path, or the name of a shipped configuration: ``piper`` or ``piper.yaml``.
        default: The shipped one to use where ``config`` is ``None``.

    Raises:
        Failure: There is no such file or name, or neither argument names one. It lists the names.
    """
    if config is not None and config.is_file():
        return config
    named = config or Path(default)
    known = shipped()
    if named.parent == Path() and named.suffix in ("", ".yaml") and named.stem in known:
        return known[named.stem]
    if config is not None or default:
        raise Failure(f"there is no configuration {named}; voicefleet has {', '.join(known)}")
    width = max(map(len, known), default=0)
    lines = [f"  {name:<{width}}  {_summary(path)}" for name, path in known.items()]
    problem = "say --config NAME, or --config FILE with one of your own. voicefleet has"
    raise Failure("\n".join([problem, *lines]))


def shipped() -> dict[str, Path]:
    """The configurations by name: those of ``configs/`` here first, then those installed."""
    found = {path.stem: path for path in installation.shipped("configs").glob("*.yaml")}
    # A folder called configs may hold anything: only files with our names are taken from it.
    here = {name: Path("configs", path.name) for name, path in found.items()}
    return {
        name: here[name] if here[name].is_file() else path for name, path in sorted(found.items())
    }


def _summary(path: Path) -> str:
    """The comment on the file's first line."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        return lines.readline().strip().lstrip("# ")
