"""docs/add-a-field.md against the code: its files are all that name the example's field."""

import re

from tests.harness import ROOT
from voicefleet.producer.session import SpeakOptions
from voicefleet.schemas import Request

DOCUMENT = (ROOT / "docs/add-a-field.md").read_text()
STEPS = re.findall(r"^## \d\. `(.+?)`.*?\n(.*?)(?=^## )", DOCUMENT, re.DOTALL | re.MULTILINE)
PRODUCT = ("schemas", "wire", "producer", "worker", "cli")


def test_the_example_is_what_stands_in_the_files() -> None:
    for path, step in STEPS:
        snippets = re.findall(r"```diff\n(.*?)```", step, re.DOTALL)
        assert snippets, path
        for snippet in snippets:
            added = re.sub(r"^\+", "", snippet, flags=re.MULTILINE)
            assert added in (ROOT / path).read_text(), path


def test_a_field_touches_five_files() -> None:
    paths = [path for path, _ in STEPS]
    assert len(paths) == 5
    sources = [path for room in PRODUCT for path in (ROOT / room).rglob("*.*") if path.is_file()]
    naming = {
        str(path.relative_to(ROOT))
        for path in sources
        if path.suffix in (".py", ".lua") and "traceparent" in path.read_text()
    }
    assert naming == {path for path in paths if path.startswith(PRODUCT)}


def test_every_field_that_a_client_chooses_is_an_option() -> None:
    chosen = set(Request.__struct_fields__) - {"session", "text", "stream"}
    assert chosen < SpeakOptions.__annotations__.keys()
