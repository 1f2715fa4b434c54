"""``voicepacks``: the voices on this machine."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from producer.cli.table import print_table

app = App(name="voicepacks", help="The voices on this machine.")

Directory = Annotated[
    str, Parameter(name="--dir", help="Default: the folder that a worker started here would use.")
]


@app.command(name="list")
def list_(*, directory: Directory = "") -> None:
    """List them."""
    from worker import voicepacks  # noqa: PLC0415 the client does without the worker's side

    packs = voicepacks.discover(voicepacks.default_directory(directory))
    print_table(
        ("model", "version", "languages", "voices", "native rate", "memory", "licence", "folder"),
        (
            (
                *(model, pack.version, ", ".join(pack.languages), ", ".join(pack.voices)),
                *(f"{pack.native_rate} Hz", f"{pack.memory_mb} MB", pack.licence, pack.directory),
            )
            for model, pack in packs.items()
        ),
    )


@app.command
def check(*, directory: Directory = "") -> int:
    """Say what stands in the way of loading each of them; exit status 1 where anything does."""
    from worker import voicepacks  # noqa: PLC0415

    folder = voicepacks.default_directory(directory)
    bad = 0
    for path in voicepacks.folders(Path(folder)):
        try:
            pack = voicepacks.read(path)
            findings = voicepacks.check(pack)
            name = pack.model_id
        except voicepacks.VoicepackError as error:
            name, findings = str(path), str(error).splitlines()
        print(f"{'fail' if findings else 'ok  '}  {name}")
        for finding in findings:
            print(f"        {finding}")
        bad += bool(findings)
    return 1 if bad else 0
