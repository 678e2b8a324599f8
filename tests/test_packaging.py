"""What is installed, under which name, and how little of it a light import loads."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import minikeye

ROOT = Path(__file__).resolve().parent.parent


def python(code: str, folder: Path) -> subprocess.CompletedProcess:
    """Run `code` in a fresh interpreter, in `folder`."""
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "minikeye").rglob("__init__.py")}
    assert sorted(listed) == sorted({".".join(folder.parts) for folder in folders} | {"minikeye.kernels"})


@pytest.mark.slow
def test_kernels_have_one_name(tmp_path):
    assert python("import minikeye.kernels", tmp_path).returncode == 0
    assert "No module named 'kernels'" in python("import kernels", tmp_path).stderr


def test_pytest_does_not_expose_kernels():
    with pytest.raises(ModuleNotFoundError):
        import kernels  # noqa: F401


@pytest.mark.slow
@pytest.mark.parametrize("inside", [True, False])
def test_transformers_does_not_take_them_for_its_own(tmp_path, inside):
    code = "from transformers.utils import is_kernels_available as f; import sys; sys.exit(f())"
    result = python(code, ROOT if inside else tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_import_is_lazy(tmp_path):
    code = "import sys, minikeye; sys.exit(bool({'torch', 'av', 'tokenizers'} & set(sys.modules)))"
    assert python(code, tmp_path).returncode == 0


@pytest.mark.parametrize("name", ["KeyeConfig", "KeyeVL", "Processor"])
def test_public_names(name):
    assert getattr(minikeye, name).__name__ == name
    assert name in dir(minikeye)


def test_unknown_name():
    with pytest.raises(AttributeError, match="its public names are"):
        minikeye.Keye  # noqa: B018
