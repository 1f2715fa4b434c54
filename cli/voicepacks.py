"""``voicepacks``: the voices on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from voicefleet.cli.failure import Failure, require
from voicefleet.cli.table import Json, print_json, print_table
from voicefleet.installation import install

if TYPE_CHECKING:
    from voicefleet.worker.voicepacks.voicepack import Voicepack

app = App(name="voicepacks", help="The voices on this machine.")

_FOLDER = "Default: the folder that a worker started here would use."
Directory = Annotated[str, Parameter(name="--dir", help=_FOLDER)]
FormerName = Annotated[str, Parameter(show=False, help="What --dir was called here.")]


@app.command(name="list")
def list_(*, directory: Directory = "", as_json: Json = False) -> None:
    """List them."""
    require("worker")
    from voicefleet.worker.voicepacks import voicepack  # noqa: PLC0415

    packs = voicepack.discover(voicepack.default_directory(directory))
    if as_json:
        print_json(
            [
                {
                    **{"model": model, "family": pack.family, "version": pack.version},
                    **{"languages": pack.languages, "voices": pack.voices, "modes": pack.modes},
                    **{"capabilities": pack.capabilities, "native_rate": pack.native_rate},
                    **{"memory_mb": pack.memory_mb, "synthetic": pack.synthetic},
                    **{"licence": pack.licence, "directory": str(pack.directory)},
                }
                for model, pack in packs.items()
            ]
        )
        return
    print_table(
        ("model", "version", "languages", "voices", "native rate", "memory", "licence", "folder"),
        (
            (
                *(
                    model + (" (synthetic)" if pack.synthetic else ""),
                    pack.version,
                    ", ".join(pack.languages),
                    ", ".join(pack.voices),
                ),
                *(f"{pack.native_rate} Hz", f"{pack.memory_mb} MB", pack.licence, pack.directory),
            )
            for model, pack in packs.items()
        ),
    )


@app.command
def check(*, directory: Directory = "", as_json: Json = False) -> int:
    """Check whether each can be loaded, and print why not; exit status 1 where one cannot."""
    require("worker")
    from voicefleet.worker.engines import registry  # noqa: PLC0415
    from voicefleet.worker.voicepacks import voicepack  # noqa: PLC0415

    folder = voicepack.default_directory(directory)
    checked: list[dict[str, object]] = []
    for path in voicepack.folders(Path(folder)):
        try:
            pack = voicepack.read(path)
            findings = registry.check(pack)
            name = pack.model_id
            there = voicepack.is_fetched(pack)
        except voicepack.VoicepackError as error:
            name, findings, there = str(path), str(error).splitlines(), True
        grade = ("fail" if there else "none") if findings else "ok"
        checked.append({"model": name, "grade": grade, "findings": findings})
        if not as_json:
            print(f"{grade:<4}  {name}")
            for finding in findings:
                print(f"        {finding}")
    if as_json:
        print_json(checked)
    return 1 if any(pack["grade"] == "fail" for pack in checked) else 0


@app.command
def fetch(
    model: str,
    *,
    hub: Annotated[Literal["modelscope", "huggingface"] | None, Parameter(name="--from")] = None,
    endpoint: str = "",
    everything: bool = False,
    directory: Directory = "",
    dest: FormerName = "",
) -> None:
    """Download a model's files from the hub that its metadata names. Resumes broken ones.

    Args:
        model: The model's id, such as cosyvoice2-en-base.
        hub: Default: ModelScope, where the metadata names it.
        endpoint: Another address of it. Default: HF_ENDPOINT, MODELSCOPE_ENDPOINT, its own.
        everything: The repository's other files too, which upstream's own runtime needs.
        directory: The folder of voicepacks to put the model in; its metadata may be there or in the
            default folder. Default: the folder that a worker started here would use.
    """
    require("worker")
    from voicefleet.cli.progress import shown  # noqa: PLC0415
    from voicefleet.worker.voicepacks import hub_fetch, voicepack  # noqa: PLC0415
    from voicefleet.worker.voicepacks.hub import Repository  # noqa: PLC0415

    here = voicepack.default_directory(directory)
    root = Path(dest) if dest else here
    pack = _pack(model, here, voicepack.default_directory())
    source = pack.source.hub
    if source is None:
        raise Failure(f"{model} is on no hub: its files lie in {pack.directory} or in a package")
    names = {"modelscope": source.modelscope, "huggingface": source.huggingface}
    chosen = hub or ("modelscope" if source.modelscope else "huggingface")
    name = names[chosen]
    if name is None:
        raise Failure(f"{model} is not on {chosen}: leave --from out")
    repository = Repository(hub=chosen, name=name, revision=source.revision, endpoint=endpoint)
    folder = root / pack.family / pack.directory.name
    with shown() as progress, hub_fetch.Fetcher(repository, progress=progress) as fetcher:
        wanted = dict(source.files)
        if everything:
            others = fetcher.listing().keys() - wanted.keys() - {voicepack.METADATA}
            wanted |= dict.fromkeys(sorted(others), voicepack.HubFile())
        written = fetcher.fetch(wanted, folder)
    for path in written:
        if path.suffix == ".pt":  # drop the converted copy of the older file
            path.with_suffix(".safetensors").unlink(missing_ok=True)
    if not (folder / voicepack.METADATA).exists():
        content = (pack.directory / voicepack.METADATA).read_bytes()
        (folder / voicepack.METADATA).write_bytes(content)
    print(f"{len(written)} files fetched; {model} is in {folder}")


@app.command
def convert(
    model: str, *, dtype: Literal["fp32", "bf16", "fp16"] = "fp32", directory: Directory = ""
) -> None:
    """Write safetensors copies of a CosyVoice 2 model's weights, which load faster.

    Args:
        model: The model's id.
        dtype: What the copies hold. One in 16 bit serves that type only. The vocoder stays fp32.
        directory: The folder of voicepacks to look for the model in.
    """
    require("worker")
    from voicefleet.worker.voicepacks import voicepack  # noqa: PLC0415

    pack = _pack(model, voicepack.default_directory(directory))
    if pack.family != "cosyvoice2":
        raise Failure(f"{model} is of family {pack.family}: only cosyvoice2 is converted")
    try:
        from voicefleet.worker.engines.cosyvoice2.pack import convert as conversion  # noqa: PLC0415
    except ImportError as error:
        raise _needs_extra(error) from None
    for path in conversion.convert(pack.directory, conversion.DTYPES[dtype]):
        print(f"{path.stat().st_size / 1e6:8.1f} MB  {path}")


@app.command
def random(
    model: Literal["cosyvoice2-tiny", "cosyvoice2-full"],
    *,
    seed: int = 0,
    directory: Directory = "",
    out: FormerName = "",
) -> None:
    """Write a pack of random weights in the published layout: it runs, and makes noise.

    Args:
        model: tiny is for tests (60 MB); full has the published sizes (3.6 GB).
        seed: Other seeds give other weights.
        directory: The folder of voicepacks to put it in. Default: the one a worker here would use.
    """
    require("worker")
    from voicefleet.worker.voicepacks import voicepack  # noqa: PLC0415

    try:
        from voicefleet.worker.engines.cosyvoice2.pack import random_pack  # noqa: PLC0415
    except ImportError as error:
        raise _needs_extra(error) from None
    root = voicepack.default_directory(directory or out)
    folder = root / "cosyvoice2" / model.removeprefix("cosyvoice2-")
    try:
        random_pack.write(folder, random_pack.MODELS[model], seed, model)
    except FileExistsError as error:
        raise Failure(f"{error}: remove it first") from None
    print(f"{model} is in {folder}: random weights, no voice")


def _pack(model: str, *folders: Path) -> "Voicepack":
    """The model's pack, from the first folder that has it."""
    from voicefleet.worker.voicepacks import voicepack  # noqa: PLC0415

    known: list[str] = []
    for folder in dict.fromkeys(folders):
        packs = voicepack.discover(folder) if folder.is_dir() else {}
        if model in packs:
            return packs[model]
        known += packs
    raise Failure(f"there is no model {model!r}; there are {', '.join(known) or 'none'}")


def _needs_extra(error: ImportError) -> Failure:
    return Failure(f"this needs the cosyvoice extra: {install('cosyvoice')} ({error})")
