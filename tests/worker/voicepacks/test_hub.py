"""Fetching from a hub: a small one of our own on loopback, which speaks both dialects."""

import hashlib
import json
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

pytest.importorskip("httpx2", reason="fetching needs httpx2")

from voicefleet.cli import main
from voicefleet.worker.voicepacks.hub import HubError, HubName, Listing, Repository
from voicefleet.worker.voicepacks.hub_fetch import Fetcher
from voicefleet.worker.voicepacks.voicepack import HubFile

NAME = "maker/model"
HUBS: list[HubName] = ["huggingface", "modelscope"]
BIG = bytes(range(256)) * 8192  # 2 MiB
FILES = {"llm.pt": BIG, "a folder/config.json": b"{}", "empty.txt": b"", "extra.zip": b"no"}


class Hub:
    """What the stand-in serves, how it misbehaves, and what it was asked for."""

    def __init__(self) -> None:
        self.files = dict(FILES)
        self.said: dict[str, dict[str, Any]] = {}
        """Overrides of what the list of files says, by path."""
        self.cuts: list[int] = []
        """The next downloads end after so many bytes."""
        self.failures: list[int] = []
        """The next answers have these statuses."""
        self.ranges = True
        self.sizes = True
        self.pages = False
        self.log: list[tuple[str, str | None]] = []
        self.url = ""

    def downloads(self) -> list[str | None]:
        """The ranges of the downloads there were."""
        return [wanted for path, wanted in self.log if "/cdn/" in path]

    def listing(self, hub: HubName) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        for path, content in self.files.items():
            said = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            said |= self.said.get(path, {})
            shown = said.get("path", path)
            if hub == "modelscope":
                entry = {"Path": shown, "Type": "blob", "Size": said["size"]}
                entries.append(entry | {"Sha256": said["sha256"], "Name": Path(shown).name})
            elif len(content) > 100:  # a large file
                lfs = {"oid": said["sha256"], "size": said["size"], "pointerSize": 134}
                entry = {"type": "file", "path": shown, "size": said["size"], "oid": "0" * 40}
                entries.append(entry | {"lfs": lfs})
            else:
                entries.append({"type": "file", "path": shown, "size": said["size"], "oid": "0"})
        if hub == "modelscope":
            entries.append({"Path": "a folder", "Type": "tree", "Size": 0, "Sha256": ""})
        else:
            entries.append({"type": "directory", "path": "a folder", "oid": "0", "size": 0})
        return entries


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        hub, wanted = self.hub, self.headers.get("Range")
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        hub.log.append((self.path, wanted))
        if hub.failures:
            return self.answer(hub.failures.pop(0), b"")
        match unquote(parts.path).split("/")[1:]:
            case ["api", "models", *name, "tree", "main"] if "/".join(name) == NAME:
                entries = hub.listing("huggingface")
                links: dict[str, str] = {}
                if hub.pages:
                    page = int(query.get("cursor", 0))
                    if page + 1 < len(entries):
                        there = f"{hub.url}{parts.path}?recursive=true&cursor={page + 1}"
                        links = {"Link": f'<{there}>; rel="next"'}
                    entries = entries[page : page + 1]
                return self.answer(200, json.dumps(entries).encode(), links)
            case ["api", "v1", "models", *name, "repo", "files"] if "/".join(name) == NAME:
                page = {"Code": 200, "Data": {"Files": hub.listing("modelscope")}}
                return self.answer(200, json.dumps(page).encode())
            case ["maker", "model", "resolve", "main", *path]:
                return self.answer(302, b"", {"Location": "/cdn/" + "/".join(path)})
            case ["api", "v1", "models", *name, "repo"] if "/".join(name) == NAME:
                return self.answer(302, b"", {"Location": f"/cdn/{query['FilePath']}"})
            case ["cdn", *path] if "/".join(path) in hub.files:
                return self.download(hub.files["/".join(path)], wanted)
            case _:
                return self.answer(404, b"not here")

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value.replace(" ", "%20") if key == "Location" else value)
        self.end_headers()
        self.wfile.write(body)

    def download(self, content: bytes, wanted: str | None) -> None:
        start, status, headers = 0, 200, dict[str, str]()
        if wanted and self.hub.ranges:
            start, status = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
            if start >= len(content):
                return self.answer(416, b"")
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send_response(status)
        if self.hub.sizes:
            headers["Content-Length"] = str(len(content) - start)
        for key, value in headers.items():
            self.send_header(key, value)
        self.close_connection = True
        self.send_header("Connection", "close")
        self.end_headers()
        end = start + self.hub.cuts.pop(0) if self.hub.cuts else len(content)
        self.wfile.write(content[start:end])
        return None


@pytest.fixture
def hub() -> Generator[Hub]:
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": state}))
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def fetcher(hub: Hub, kind: HubName, **options: Any) -> Generator[Fetcher]:
    repository = Repository(hub=kind, name=NAME, endpoint=hub.url)
    with Fetcher(repository, **{"pause_s": 0.001, **options}) as open_fetcher:
        yield open_fetcher


def wanted(*paths: str, **known: Any) -> dict[str, HubFile]:
    return {path: HubFile(**known) for path in paths}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("kind", HUBS)
def test_fetches_what_is_asked_for(hub: Hub, kind: HubName, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    asked = wanted("llm.pt", "a folder/config.json", "empty.txt")
    asked |= wanted("spk2info.pt", optional=True)
    with fetcher(hub, kind, progress=lambda *said: told.append(said)) as open_fetcher:
        written = open_fetcher.fetch(asked, tmp_path / "pack")
        expected = {path: FILES[path] for path in asked if path in FILES}
        assert contents(tmp_path / "pack") == expected
        assert sorted(written) == sorted(tmp_path / "pack" / path for path in expected)
        assert ("llm.pt", len(BIG), len(BIG)) in told
        before = len(hub.downloads())
        assert open_fetcher.fetch(asked, tmp_path / "pack") == []
        assert len(hub.downloads()) == before


@pytest.mark.parametrize("kind", HUBS)
def test_lists_sizes_and_hashes(hub: Hub, kind: HubName) -> None:
    with fetcher(hub, kind) as open_fetcher:
        listing = open_fetcher.listing()
    assert listing.keys() == FILES.keys()
    digest = hashlib.sha256(BIG).hexdigest()
    assert listing["llm.pt"] == Listing("llm.pt", len(BIG), digest)


def test_a_list_in_pages(hub: Hub) -> None:
    hub.pages = True
    with fetcher(hub, "huggingface") as open_fetcher:
        assert open_fetcher.listing().keys() == FILES.keys()


@pytest.mark.parametrize("kind", HUBS)
@pytest.mark.parametrize("sizes", [True, False], ids=["length", "no-length"])
def test_goes_on_where_the_connection_broke(
    hub: Hub, kind: HubName, sizes: bool, tmp_path: Path
) -> None:
    hub.cuts, hub.sizes = [1_000_000, 500_000], sizes
    with fetcher(hub, kind) as open_fetcher:
        open_fetcher.fetch(wanted("llm.pt"), tmp_path)
    assert contents(tmp_path) == {"llm.pt": BIG}
    assert hub.downloads() == [None, "bytes=1000000-", "bytes=1500000-"]


def test_goes_on_with_what_an_earlier_run_left(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "llm.pt.part").write_bytes(BIG[:4321])
    with fetcher(hub, "modelscope") as open_fetcher:
        open_fetcher.fetch(wanted("llm.pt"), tmp_path)
    assert contents(tmp_path) == {"llm.pt": BIG}
    assert hub.downloads() == ["bytes=4321-"]


@pytest.mark.parametrize("left", [b"x" * 4321, BIG + b"more"], ids=["other", "longer"])
def test_what_an_earlier_revision_left_is_fetched_anew(
    hub: Hub, left: bytes, tmp_path: Path
) -> None:
    (tmp_path / "llm.pt.part").write_bytes(left)
    with fetcher(hub, "modelscope") as open_fetcher:
        open_fetcher.fetch(wanted("llm.pt"), tmp_path)
    assert contents(tmp_path) == {"llm.pt": BIG}
    assert hub.downloads()[-1] is None


def test_a_server_without_ranges(hub: Hub, tmp_path: Path) -> None:
    hub.ranges, hub.cuts = False, [1_000_000]
    with fetcher(hub, "huggingface") as open_fetcher:
        open_fetcher.fetch(wanted("llm.pt"), tmp_path)
    assert contents(tmp_path) == {"llm.pt": BIG}


def test_a_changed_file_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    with fetcher(hub, "modelscope") as open_fetcher:
        open_fetcher.fetch(wanted("llm.pt"), tmp_path)
        hub.files["llm.pt"] = BIG[::-1]
        open_fetcher.fetch(wanted("llm.pt"), tmp_path)
    assert contents(tmp_path) == {"llm.pt": BIG[::-1]}


@pytest.mark.parametrize("kind", HUBS)
@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"sha256": "0" * 64}, "has SHA-256 .*, not 0000"),
        ({"size": len(BIG) + 1}, "has 2097152 bytes, not 2097153"),
        ({"size": len(BIG) - 1}, "bytes, not 2097151"),
    ],
)
def test_what_is_not_what_was_promised_is_thrown_away(
    hub: Hub, kind: HubName, said: dict[str, Any], message: str, tmp_path: Path
) -> None:
    hub.said["llm.pt"] = said
    hub.sizes = False
    with fetcher(hub, kind, retries=1) as open_fetcher, pytest.raises(HubError) as caught:
        open_fetcher.fetch(wanted("llm.pt"), tmp_path)
    assert hub.url in str(caught.value)
    if "size" not in said or said["size"] < len(BIG):
        assert caught.match(message)
        assert contents(tmp_path) == {}
    else:
        assert caught.match("ended after 2097152 of 2097153 bytes|" + message)
        assert "llm.pt" not in contents(tmp_path)


def test_the_voicepack_has_the_last_word(hub: Hub, tmp_path: Path) -> None:
    right = wanted("llm.pt", size=len(BIG), sha256=hashlib.sha256(BIG).hexdigest())
    with fetcher(hub, "huggingface") as open_fetcher:
        with pytest.raises(HubError, match=r"llm\.pt: is .* there, but the voicepack says 0000"):
            open_fetcher.fetch(wanted("llm.pt", sha256="0" * 64), tmp_path)
        with pytest.raises(HubError, match="has SHA-256"):  # the hub says no hash of small files
            open_fetcher.fetch(wanted("a folder/config.json", sha256="0" * 64), tmp_path)
        assert hub.downloads() == [None]
        open_fetcher.fetch(right, tmp_path)
    assert contents(tmp_path) == {"llm.pt": BIG}


@pytest.mark.parametrize("kind", HUBS)
def test_a_file_that_is_not_there(hub: Hub, kind: HubName, tmp_path: Path) -> None:
    with fetcher(hub, kind) as open_fetcher:
        with pytest.raises(HubError, match=r"has no flow\.pt, hift\.pt"):
            open_fetcher.fetch(wanted("llm.pt", "flow.pt", "hift.pt"), tmp_path)
        assert contents(tmp_path) == {} and hub.downloads() == []
        hub.said["empty.txt"] = {"path": "ghost.pt"}
        with pytest.raises(HubError, match=r"404 Not Found.*name and the revision"):
            open_fetcher.fetch(wanted("ghost.pt"), tmp_path)


@pytest.mark.parametrize("kind", HUBS)
def test_a_repository_that_is_not_there(hub: Hub, kind: HubName) -> None:
    repository = Repository(hub=kind, name="maker/other", endpoint=hub.url)
    with Fetcher(repository) as open_fetcher, pytest.raises(HubError, match="404 Not Found"):
        open_fetcher.listing()
    assert len(hub.log) == 1


@pytest.mark.parametrize("kind", HUBS)
@pytest.mark.parametrize("path", ["../evil.pt", "/etc/evil", "a/../../evil", "a\\..\\evil", ""])
def test_no_listing_leads_out(hub: Hub, kind: HubName, path: str, tmp_path: Path) -> None:
    hub.said["empty.txt"] = {"path": path}
    with fetcher(hub, kind) as open_fetcher, pytest.raises(HubError, match="leads elsewhere"):
        open_fetcher.fetch(wanted("llm.pt"), tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_a_busy_hub_is_asked_again(hub: Hub, tmp_path: Path) -> None:
    hub.failures = [503, 429]
    with fetcher(hub, "huggingface") as open_fetcher:
        open_fetcher.fetch(wanted("llm.pt"), tmp_path)
    assert contents(tmp_path) == {"llm.pt": BIG}
    hub.failures = [500] * 9
    said = pytest.raises(HubError, match=r"500 .*\(tried 3 times\)")
    with fetcher(hub, "huggingface", retries=2) as open_fetcher, said:
        open_fetcher.listing()
    assert len(hub.failures) == 6


def test_tries_without_progress_end(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = [100] + [0] * 9
    said = pytest.raises(HubError, match="tried 3 times")
    with fetcher(hub, "modelscope", retries=2) as open_fetcher, said:
        open_fetcher.fetch(wanted("llm.pt"), tmp_path)
    assert contents(tmp_path) == {"llm.pt.part": BIG[:100]}


def test_nobody_listens() -> None:
    repository = Repository(hub="huggingface", name=NAME, endpoint="http://127.0.0.1:1")
    said = pytest.raises(HubError, match=r"127\.0\.0\.1:1.*tried 2 times")
    with Fetcher(repository, retries=1, pause_s=0.001) as open_fetcher, said:
        open_fetcher.listing()


def test_no_list_of_files(hub: Hub) -> None:
    repository = Repository(hub="modelscope", name=NAME, endpoint=f"{hub.url}/cdn/empty.txt?")
    with Fetcher(repository) as open_fetcher, pytest.raises(HubError, match="no list of files"):
        open_fetcher.listing()


def test_no_room(hub: Hub, tmp_path: Path) -> None:
    hub.said["llm.pt"] = {"size": 10**18}
    said = pytest.raises(HubError, match=r"1000000000\.0 GB are needed")
    with fetcher(hub, "modelscope") as open_fetcher, said:
        open_fetcher.fetch(wanted("llm.pt"), tmp_path)
    assert hub.downloads() == []


@pytest.mark.parametrize("kind", HUBS)
def test_the_endpoint_of_the_environment(
    hub: Hub, kind: HubName, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = {"huggingface": "HF_ENDPOINT", "modelscope": "MODELSCOPE_ENDPOINT"}[kind]
    monkeypatch.setenv(variable, f"{hub.url}/")
    with Fetcher(Repository(hub=kind, name=NAME)) as open_fetcher:
        assert open_fetcher.listing().keys() == FILES.keys()


METADATA = """\
family: cosyvoice2
model_id: cosyvoice2-x
version: "1"
languages: [en]
native_rate: 24000
licence: MIT
source:
  hub: {modelscope: maker/model, huggingface: maker/model, files: {llm.pt: {}}}
"""


@pytest.fixture
def command(hub: Hub, tmp_path: Path) -> Callable[..., int]:
    folder = tmp_path / "packs/cosyvoice2/x"
    folder.mkdir(parents=True)
    (folder / "metadata.yaml").write_text(METADATA)

    def run(*arguments: str) -> int:
        packs = ("--dir", str(tmp_path / "packs"), "--endpoint", hub.url)
        return main(["voicepacks", "fetch", *arguments, *packs])

    return run


def test_the_command(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "packs/cosyvoice2/x"
    (folder / "llm.safetensors").write_bytes(b"a copy of an earlier one")
    assert command("cosyvoice2-x") == 0
    assert contents(folder) == {"metadata.yaml": METADATA.encode(), "llm.pt": BIG}
    assert "1 files fetched" in capsys.readouterr().out
    # Still understood: what --dir was called here once.
    assert command("cosyvoice2-x", "--dest", str(tmp_path / "else"), "--everything") == 0
    assert contents(tmp_path / "else/cosyvoice2/x") == {
        **FILES,
        "metadata.yaml": METADATA.encode(),
    }
    assert command("cosyvoice2-x", "--from", "huggingface") == 0
    assert command("cosyvoice2-y") == 1
    assert "there is no model 'cosyvoice2-y'; there are cosyvoice2-x" in capsys.readouterr().err


def test_the_command_brings_a_known_model_into_a_new_folder(
    hub: Hub, command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "packs").rename(tmp_path / "voicepacks")
    monkeypatch.chdir(tmp_path)
    new = tmp_path / "new"
    fetch = ["voicepacks", "fetch", "cosyvoice2-x", "--dir", str(new), "--endpoint", hub.url]
    assert main(fetch) == 0
    assert contents(new / "cosyvoice2/x") == {"metadata.yaml": METADATA.encode(), "llm.pt": BIG}
