"""The two commands of the README: what decides that an installation is renewed, and how wrong use ends."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool, looking at a copy of the project."""
    spec = importlib.util.spec_from_file_location("dev", ROOT / "tools" / "dev.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "DEBUG", False)
    return module


@pytest.mark.parametrize("changed", ["pyproject.toml", "setup.py", "src/copyrisk/_core.pyx", "src/copyrisk/_core.pxd"])
def test_what_is_built_from_renews_the_installation(dev: ModuleType, changed: str) -> None:
    before = dev.fingerprint()
    assert dev.fingerprint() == before
    path = dev.ROOT / changed
    path.write_text(path.read_text() + "\n")
    assert dev.fingerprint() != before


def test_python_files_count_only_where_they_are_copied(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def changes() -> bool:
        before = dev.fingerprint()
        path = dev.ROOT / "src" / "copyrisk" / "risk.py"
        path.write_text(path.read_text() + "\n")
        return bool(dev.fingerprint() != before)

    assert not changes()
    monkeypatch.setattr(dev, "DEBUG", True)
    assert changes()


@pytest.mark.parametrize("arguments", [[], ["tset"], ["--help"]])
def test_wrong_use_is_one_line(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "dev.py", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python3 tools/dev.py demo|test")
    assert len(done.stderr.splitlines()) == 1
