"""Fetch files of a model hub's repository. Needs ``httpx2``.

A file is downloaded to ``NAME.part`` beside its place, is resumed after a break, and is renamed
when its size and SHA-256 are those that the voicepack or the hub states.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from voicefleet.installation import install
from voicefleet.worker.voicepacks.hub import HubError, Listing, Repository
from voicefleet.worker.voicepacks.voicepack import HubFile

if TYPE_CHECKING:
    from httpx2 import Client, Response

TIMEOUT_S: Final = 30.0
"""The longest wait for the next byte."""

PART: Final = ".part"
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})

Progress = Callable[[str, int, int | None], None]
"""Called with a file's path, the bytes that are there, and the bytes in all, where known."""


def _silent(path: str, have: int, total: int | None) -> None:
    pass


class Fetcher:
    """Fetches from one repository, in a ``with`` block.

    Args:
        repository: Where the files come from.
        progress: Called for every piece that arrives.
        retries: How many tries in a row may bring nothing new before it gives up.
        pause_s: The pause before the first retry, in seconds; doubled for each that follows.

    Raises:
        HubError: ``httpx2`` is not installed.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        progress: Progress = _silent,
        retries: int = 5,
        pause_s: float = 1.0,
    ) -> None:
        self._repository = repository
        self._progress = progress
        self._retries = retries
        self._pause_s = pause_s
        self._client = _client()

    def __enter__(self) -> "Fetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def listing(self) -> dict[str, Listing]:
        """All files of the repository, by path.

        Raises:
            HubError: There is no such repository or revision, or the hub does not answer.
        """
        found: dict[str, Listing] = {}
        page: str | None = self._repository.index()
        while page:
            address, pages = page, list[tuple[bytes, str | None]]()
            self._persist(lambda address=address, pages=pages: self._read_page(address, pages))
            body, page = pages[-1]
            found |= {file.path: file for file in self._repository.files(body)}
        return found

    def fetch(self, wanted: Mapping[str, HubFile], destination: Path) -> list[Path]:
        """Download the ``wanted`` files below ``destination``. Files that are there stay.

        Returns:
            The files that were written.

        Raises:
            HubError: The hub lacks a file, a file has the wrong size or hash, or the disk is full.
        """
        listing = self.listing()
        lacks = [path for path, file in wanted.items() if path not in listing and not file.optional]
        if lacks:
            raise HubError(f"{self._repository.index()}: has no {', '.join(lacks)}")
        files = [
            self._expected(listing[path], file) for path, file in wanted.items() if path in listing
        ]
        files = [file for file in files if not _is_there(file, destination / file.path)]
        _require_room(files, destination)
        return [self._fetch(file, destination / file.path) for file in files]

    def _read_page(self, address: str, pages: list[tuple[bytes, str | None]]) -> None:
        with self._answer(address) as response:
            body = response.read()
            # Hugging Face gives a thousand files a page.
            pages.append((body, response.links.get("next", {}).get("url")))

    def _expected(self, listed: Listing, known: HubFile) -> Listing:
        """Size and hash as the voicepack states them, or the hub. If both do, they must agree."""
        for ours, theirs in ((known.size, listed.size), (known.sha256, listed.sha256)):
            if ours is not None and theirs is not None and ours != theirs:
                raise HubError(
                    f"{self._repository.address(listed.path)}: is {theirs} there, "
                    f"but the voicepack says {ours}: is the revision right?"
                )
        size = listed.size if known.size is None else known.size
        return Listing(listed.path, size, known.sha256 or listed.sha256)

    def _fetch(self, file: Listing, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + PART)
        address = self._repository.address(file.path)
        resumed = part.is_file()
        while True:
            self._persist(lambda: self._resume(file, address, part), lambda: _size(part))
            problem = _difference(file, part)
            if problem is None:
                part.replace(path)
                return path
            part.unlink()
            if not resumed:
                raise HubError(f"{address}: {problem}")
            resumed = False  # the earlier part may be of another revision: try once more without it

    def _persist(self, work: Callable[[], None], reached: Callable[[], int] = lambda: 0) -> None:
        """Retry ``work`` until it succeeds. A try that brought new bytes resets the count."""
        tries = 0
        while True:
            before = reached()
            try:
                return work()
            except _PassingError as error:
                tries = 1 if reached() > before else tries + 1
                if tries > self._retries:
                    raise HubError(f"{error} (tried {tries} times)") from None
                time.sleep(self._pause_s * 2 ** (tries - 1))

    def _resume(self, file: Listing, address: str, part: Path) -> None:
        """Append to ``part`` what one connection delivers."""
        have = _size(part)
        if file.size is not None and have == file.size and have:
            return
        wanted_range = {"Range": f"bytes={have}-"} if have else {}
        with self._answer(address, wanted_range) as response:
            if response.status_code == 416:
                return  # the hub has no more bytes; the hash tells whether ours are the right ones
            if not _continues(response, have):
                have = 0
            length = response.headers.get("Content-Length")
            end = have + int(length) if length else file.size
            with part.open("ab" if have else "wb") as out:
                # Written as they come: a larger buffer would be lost with the connection.
                for piece in response.iter_raw():
                    out.write(piece)
                    have += len(piece)
                    if file.size is not None and have > file.size:
                        break  # longer than stated: do not fill the disk with the rest
                    self._progress(file.path, have, file.size or end)
        if end is not None and have < end:
            raise _PassingError(f"{address}: the connection ended after {have} of {end} bytes")

    @contextmanager
    def _answer(self, address: str, headers: Mapping[str, str] = {}) -> Generator["Response"]:
        import httpx2  # noqa: PLC0415 (the extra)

        try:
            plain = {"Accept-Encoding": "identity", **headers}
            with self._client.stream("GET", address, headers=plain) as response:
                status = response.status_code
                if status in _PASSING:
                    raise _PassingError(f"{address}: {status} {response.reason_phrase}")
                if status >= 400 and status != 416:
                    hint = _HINTS.get(status, "")
                    raise HubError(f"{address}: {status} {response.reason_phrase}{hint}")
                yield response
        except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.ProtocolError) as error:
            raise _PassingError(f"{address}: {error or type(error).__name__}") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise HubError(f"{address}: {error or type(error).__name__}") from None


class _PassingError(HubError):
    """A failure that may pass: worth a retry."""


_HINTS: Final = {
    401: ": does it need a login?",
    403: ": does it need a login?",
    404: ": are the name and the revision right?",
}


def _client() -> "Client":
    try:
        import httpx2  # noqa: PLC0415
    except ImportError:
        raise HubError(f"fetching needs httpx2: {install('cosyvoice')}, or httpx2 alone") from None
    return httpx2.Client(
        follow_redirects=True, timeout=TIMEOUT_S, headers={"User-Agent": "voicefleet"}
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _continues(response: "Response", have: int) -> bool:
    """Whether the response starts where our file ends. Some servers ignore ranges."""
    content_range = response.headers.get("Content-Range", "")
    return response.status_code == 206 and content_range.startswith(f"bytes {have}-")


def _difference(file: Listing, path: Path) -> str | None:
    """How ``path`` differs from the stated size or hash; ``None``: it does not."""
    size = _size(path)
    if file.size is not None and size != file.size:
        return f"has {size} bytes, not {file.size}"
    if file.sha256 is None:
        return None
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return None if digest == file.sha256 else f"has SHA-256 {digest}, not {file.sha256}"


def _is_there(file: Listing, path: Path) -> bool:
    return path.is_file() and _difference(file, path) is None


def _require_room(files: list[Listing], destination: Path) -> None:
    needed = sum((file.size or 0) - _size(_part(destination, file)) for file in files)
    destination.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(destination).free
    if needed > free:
        raise HubError(
            f"{destination}: {needed / 1e9:.1f} GB are needed, and {free / 1e9:.1f} GB are free"
        )


def _part(destination: Path, file: Listing) -> Path:
    path = destination / file.path
    return path.with_name(path.name + PART)
