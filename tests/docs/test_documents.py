"""What documents and docstrings point to exists: links, files, modules, names, settings."""

import ast
import builtins
import hashlib
import importlib
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
import pytest

from tests.harness import ROOT
from voicefleet.worker.config.sections import Config, EngineConfig

PACKAGES = ("schemas", "wire", "producer", "worker", "cli", "verify", "bench", "tests", "examples")
FOLDERS = (*PACKAGES, "configs", "voicepacks", "deploy", "docs", ".github", ".ci")
UNWALKED = {".venv", ".git", ".hypothesis", "node_modules", "build", "dist"}

LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
IN_BACKTICKS = re.compile(r"`+([^`\n]+)`+")
PATH = re.compile(rf"(?:{'|'.join(map(re.escape, FOLDERS))})(?:/[\w.\-]+)*/?")
DOTTED = re.compile(rf"(?:voicefleet\.)?(?:{'|'.join(PACKAGES)})(?:\.\w+)+(?=\(\)|$)")
IMPORT = re.compile(r"^ *from (voicefleet[\w.]*) import ([\w, ]+)$", re.MULTILINE)
CLASS = re.compile(r"(?:[A-Z][a-z0-9]+){2,}(?=\(\)|$)")

FOREIGN = {
    *("AutoTokenizer", "CosyVoice2", "ResampleStream", "RunOptions", "SineGen2", "cli/model.py"),
    *("CausalConditionalDecoder", "CausalMaskedDiffWithXvec", "UpsampleConformerEncoder"),
}
"""What the sources quote from other projects."""

APACHE_2_0 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""SHA-256 of the licence's text as its authors publish it."""


def files(suffix: str) -> list[Path]:
    def walk(folder: Path) -> Iterator[Path]:
        for path in sorted(folder.iterdir()):
            if path.is_dir() and path.name not in UNWALKED and not path.is_symlink():
                yield from walk(path)
            elif path.suffix == suffix and path.is_file():
                yield path

    return list(walk(ROOT))


DOCUMENTS = files(".md")
SOURCES = [path for path in files(".py") if path.relative_to(ROOT).parts[0] != "tests"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def slug(heading: str) -> str:
    """The anchor that the hosting platform makes of a heading."""
    plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    kept = (c for c in plain if c in "-_ " or unicodedata.category(c)[0] in "LN")
    return "".join(kept).replace(" ", "-")


@cache
def anchors(path: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@cache
def settings() -> set[str]:
    """``section.key`` of every configuration key, and every prefix of one."""

    def walk(kind: type, prefix: str) -> Iterator[str]:
        for field in msgspec.structs.fields(kind):
            yield f"{prefix}{field.name}"
            if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
                yield from walk(field.type, f"{prefix}{field.name}.")

    return {*walk(Config, ""), *walk(EngineConfig, "engine.")}


@cache
def classes() -> set[str]:
    """Every class and alias of the sources, and Python's own."""
    found = set(dir(builtins))
    for path in files(".py"):
        found |= set(
            re.findall(r"^\s*(?:class |)(\w+)(?:\(|:| = )", path.read_text(), re.MULTILINE)
        )
    return found


def exists(dotted: str) -> bool:
    """Whether a dotted name is a module of ours, or a name that one defines, or a setting."""
    parts = dotted.removeprefix("voicefleet.").split(".")
    if ".".join(parts) in settings():
        return True
    for count in range(len(parts), 0, -1):
        folder = ROOT.joinpath(*parts[:count])
        module = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        if module.is_file():
            text = module.read_text()
            return all(re.search(rf"\b{name}\b", text) for name in parts[count:])
    return False


def missing(text: str) -> list[str]:
    """What the text imports, or names in backticks, as ours and what is not there."""
    found: set[str] = set()
    for quoted in IN_BACKTICKS.findall(text):
        paths = (word.rstrip(",;:") for word in quoted.split() if "/" in word)
        found |= {path for path in paths if PATH.fullmatch(path) and not (ROOT / path).exists()}
        if match := DOTTED.match(quoted):
            found |= {match[0]} if not exists(match[0]) else set()
        elif match := CLASS.match(quoted):
            found |= {match[0]} - classes()
    for module, names in IMPORT.findall(text):
        try:
            imported = importlib.import_module(module)
        except ModuleNotFoundError:
            found.add(module)
            continue
        found |= {name for name in names.split(", ") if not hasattr(imported, name)}
    return sorted(found - FOREIGN)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue  # no test asks the network
        path, _, anchor = target.partition("#")
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), f"{target} leads nowhere"
        if anchor:
            assert anchor in anchors(found), f"{target}: no such heading"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_documents_name_what_exists(document: Path) -> None:
    assert missing(document.read_text()) == []


def test_docstrings_name_what_exists() -> None:
    wrong: list[str] = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node) or ""
                wrong += [f"{name_of(path)}: {name}" for name in missing(docstring)]
    assert wrong == []


def test_the_glossary_explains_words_that_the_code_uses() -> None:
    glossary = (ROOT / "docs/glossary.md").read_text()
    terms = re.findall(r"\*\*([^*]+)\*\*", glossary)
    assert len(terms) > 30
    code = "\n".join(path.read_text() for path in (*SOURCES, ROOT / "docs/protocol.md"))
    spelled = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", code).lower().replace("_", " ")
    spelled = re.sub(r"\s+", " ", spelled)
    for term in terms:
        assert term.replace("-", "") in spelled.replace("-", ""), f"nobody says {term!r}"


def test_the_licence_is_apache_2() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_0
