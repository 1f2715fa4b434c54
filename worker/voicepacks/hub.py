"""Model hubs, Hugging Face and ModelScope: the files of a repository, and their addresses."""

import os
from collections.abc import Callable
from typing import Final, Literal
from urllib.parse import quote

import msgspec

from voicefleet.worker.voicepacks.voicepack import is_inside

HubName = Literal["huggingface", "modelscope"]

ENDPOINTS: Final[dict[HubName, tuple[str, str, str]]] = {
    "huggingface": ("HF_ENDPOINT", "https://huggingface.co", "main"),
    "modelscope": ("MODELSCOPE_ENDPOINT", "https://modelscope.cn", "master"),
}
"""By hub: the variable that overrides its address, its own address, its default revision."""


class HubError(Exception):
    """A file cannot be fetched. The message has its address and the reason."""


class Listing(msgspec.Struct, frozen=True):
    """One file of a repository. ``sha256`` is None where the hub does not publish it."""

    path: str
    size: int | None = None
    sha256: str | None = None


class Repository(msgspec.Struct, frozen=True, kw_only=True):
    """A model's repository, ``owner/name``.

    An empty ``endpoint`` means the environment's or the hub's own, an empty ``revision`` the hub's
    default.
    """

    hub: HubName
    name: str
    revision: str = ""
    endpoint: str = ""

    @property
    def base(self) -> str:
        """The hub's address."""
        variable, default, _ = ENDPOINTS[self.hub]
        return (self.endpoint or os.environ.get(variable) or default).rstrip("/")

    def address(self, path: str) -> str:
        """A file's URL, which the hub may redirect."""
        if self.hub == "huggingface":
            return f"{self.base}/{self.name}/resolve/{self._revision}/{quote(path)}"
        query = f"Revision={self._revision}&FilePath={quote(path, safe='')}"
        return f"{self.base}/api/v1/models/{self.name}/repo?{query}"

    def index(self) -> str:
        """The URL of the first page of the list of files."""
        if self.hub == "huggingface":
            return f"{self.base}/api/models/{self.name}/tree/{self._revision}?recursive=true"
        query = f"Revision={self._revision}&Recursive=true"
        return f"{self.base}/api/v1/models/{self.name}/repo/files?{query}"

    def files(self, page: bytes) -> list[Listing]:
        """The files on a page of the list.

        Raises:
            HubError: The page is malformed, or one of its paths leads out of the repository.
        """
        try:
            files = _READERS[self.hub](page)
        except msgspec.DecodeError as error:
            raise HubError(f"{self.index()}: is no list of files: {error}") from None
        for file in files:
            if not is_inside(file.path):
                raise HubError(f"{self.index()}: lists {file.path!r}, which leads elsewhere")
        return files

    @property
    def _revision(self) -> str:
        return quote(self.revision or ENDPOINTS[self.hub][2], safe="")


class _Lfs(msgspec.Struct):
    """A large file: its ``oid`` is its SHA-256."""

    oid: str
    size: int


class _TreeEntry(msgspec.Struct):
    type: str
    path: str
    size: int | None = None
    lfs: _Lfs | None = None


def _huggingface(page: bytes) -> list[Listing]:
    return [
        Listing(entry.path, entry.lfs.size, entry.lfs.oid)
        if entry.lfs
        else Listing(entry.path, entry.size)
        for entry in msgspec.json.decode(page, type=list[_TreeEntry])
        if entry.type == "file"
    ]


class _ModelScopeFile(msgspec.Struct, rename="pascal"):
    path: str
    type: str = "blob"
    size: int | None = None
    sha256: str | None = None


class _ModelScopeFiles(msgspec.Struct, rename="pascal"):
    files: list[_ModelScopeFile]


class _ModelScopePage(msgspec.Struct, rename="pascal"):
    data: _ModelScopeFiles


def _modelscope(page: bytes) -> list[Listing]:
    return [
        Listing(file.path, file.size, file.sha256 or None)
        for file in msgspec.json.decode(page, type=_ModelScopePage).data.files
        if file.type == "blob"
    ]


_READERS: Final[dict[HubName, Callable[[bytes], list[Listing]]]] = {
    "huggingface": _huggingface,
    "modelscope": _modelscope,
}
