"""The audit of what users install: what it lets pass, and what it does not."""

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType

import pytest

from tests.harness.fleet import ROOT


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    """``.ci/audit``, as a module."""
    loader = SourceFileLoader("voicefleet_audit", str(ROOT / ".ci" / "audit"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    made = module_from_spec(spec)
    loader.exec_module(made)
    return made


@pytest.mark.parametrize(
    ("licence", "grade"),
    [
        ("MIT", "permissive"),
        ("3-Clause BSD License", "permissive"),
        ("Apache-2.0 AND Apache-2.0 WITH LLVM-exception", "permissive"),
        ("BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", "permissive"),
        ("GPL-2.0-only OR MIT", "permissive"),
        ("MPL-2.0 AND MIT", "weak"),
        ("LGPL-2.1-or-later", "weak"),
        ("GNU Lesser General Public License v3 (LGPLv3)", "weak"),
        ("GPL-3.0-or-later", "strong"),
        ("GNU Affero General Public License v3", "strong"),
        ("GNU General Public License v2 (GPLv2)", "strong"),
        ("MIT AND (GPL-3.0-only OR AGPL-3.0-only)", "strong"),
        ("CC-BY-NC-4.0", "strong"),
        ("Other/Proprietary License", "unknown"),
        ("none named", "unknown"),
    ],
)
def test_licences_are_told_apart(audit: ModuleType, licence: str, grade: str) -> None:
    assert audit.grade(licence) == grade


@pytest.mark.parametrize(
    ("name", "part", "licence", "may"),
    [
        ("x", "", "MIT", True),
        ("x", "", "GPL-3.0-or-later", False),
        ("x", "cosyvoice", "GPL-3.0-or-later", False),
        ("x", "piper", "GPL-3.0-or-later", True),
        ("x", "", "MPL-2.0", False),
        ("x", "upstream", "MPL-2.0", True),
        ("x", "", "LGPL-2.1-or-later", False),
        ("x", "", "none named", False),
        ("nvidia-cublas", "cosyvoice", "LicenseRef-NVIDIA", True),
        ("nvidia-cublas", "", "LicenseRef-NVIDIA", False),
    ],
)
def test_what_may_be_where(
    audit: ModuleType, name: str, part: str, licence: str, may: bool
) -> None:
    assert audit.judge(audit.Installed(name, "1", part, licence))[0] is may


def test_what_is_installed_here_passes(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "advisories", lambda pins: {})
    assert audit.main() == 0
    said = capsys.readouterr().out
    assert "redis " in said and "SKIPPED, no advisories to be had" in said


@pytest.mark.parametrize("ignored", [False, True])
def test_a_known_vulnerability_fails_unless_there_is_a_reason(
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ignored: bool,
) -> None:
    monkeypatch.setattr(audit, "advisories", lambda pins: {"redis 1.0": ["CVE-1"]})
    monkeypatch.setattr(audit, "IGNORED", {"CVE-1": "it is none of ours"} if ignored else {})
    assert audit.main() == (0 if ignored else 1)
    said = capsys.readouterr()
    assert ("none of ours" in said.out) is ignored
    assert ("FAILED: redis 1.0: CVE-1" in said.err) is not ignored
