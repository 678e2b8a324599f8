"""What is installed, under which name, and how little of it a light import loads."""

import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

import minikeye

ROOT = Path(__file__).resolve().parent.parent


def python(code: str, folder: Path) -> subprocess.CompletedProcess:
    """Run `code` in a fresh interpreter, in `folder`."""
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [
        path.parent.relative_to(ROOT) for name in ("minikeye", "kernels") for path in (ROOT / name).rglob("__init__.py")
    ]
    names = {".".join(folder.parts) for folder in found}
    assert sorted(listed) == sorted(f"minikeye.{name}" if name.startswith("kernels") else name for name in names)


def test_files_that_are_no_modules_are_listed():
    """The explorer's page needs its script: a wheel holds only what is named."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    folders = {name: ROOT / name.replace(".", "/") for name in listed}
    covered = {path for name, folder in folders.items() for pattern in listed[name] for path in folder.glob(pattern)}
    files = {path for folder in ("minikeye", "kernels") for path in (ROOT / folder).rglob("*") if path.is_file()}
    others = {path for path in files if path.suffix != ".py" and "__pycache__" not in path.parts}
    assert covered == others and len(others) >= 5


def test_ranges_hold_what_is_tested():
    """Every range has a lowest version, which the pinned one of requirements.txt is not below; known faults are.

    PyAV below 18 lacks attributes that container.py reads; the sandbox of jinja 3.1.5 leaks. pyarrow and
    ray have no pin: only those with parquet files or several machines need them; their tests are skipped without.
    """
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.M))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ranges = [*project["dependencies"], *(line for part in project["optional-dependencies"].values() for line in part)]
    lowest = dict(line.split(">=") for line in ranges)
    parts = lambda text: tuple(map(int, text.split(".")))  # noqa: E731
    assert set(lowest) - set(pins) == {"pyarrow", "ray"}
    assert {name for name, low in lowest.items() if parts(pins.get(name, low)) < parts(low)} == set()
    assert parts(lowest["av"]) >= (18,) and parts(lowest["jinja2"]) >= (3, 1, 6)


@pytest.mark.slow
def test_the_wheel_works_without_the_repository(tmp_path):
    """Built from a copy and installed into an environment of its own, which sees the other packages and nothing else.

    From an empty folder `minikeye check` says its version and that there is no checkpoint; help of every command and
    the kernels are there; every file that a module reads beside itself came along, as one pass of `fake-checkpoint`
    and `info` shows.
    """
    source = tmp_path / "source"
    source.mkdir()
    for name in ("minikeye", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path / "wheels", source]
    subprocess.run([*pip, *build], check=True, cwd=tmp_path)
    [wheel] = (tmp_path / "wheels").iterdir()
    assert wheel.name == f"minikeye-{minikeye.__version__}-py3-none-any.whl"
    shutil.rmtree(source)

    venv.create(tmp_path / "env", with_pip=False)
    its = tmp_path / "env" / "bin" / "python"
    site = subprocess.run(
        [its, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], capture_output=True, text=True
    ).stdout.strip()
    others = "\n".join(path for path in sys.path if Path(path).name == "site-packages")
    Path(site, "others.pth").write_text(others)  # the packages there, not the .pth files: the editable minikeye is one
    missing = subprocess.run([its, "-c", "import minikeye"], capture_output=True, text=True, cwd=tmp_path)
    assert "No module named 'minikeye'" in missing.stderr
    install = ["--python", its, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run([*pip, *install], check=True, cwd=tmp_path)

    empty = tmp_path / "empty"
    empty.mkdir()

    def run(*command: str) -> str:
        done = subprocess.run([its.parent / "minikeye", *command], cwd=empty, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = run("check")
    assert re.search(rf"^minikeye +{re.escape(minikeye.__version__)}$", said, re.M) and "backend auto takes" in said
    assert re.search(rf"^default +none at {re.escape(site)}", said, re.M) and str(ROOT) not in said
    assert "--needles-json" in run("evaluate", "--help")
    run("fake-checkpoint", "made", "--small", "--layers", "2")
    assert "2 layers" in run("info", "--config", "made")
    code = "import minikeye.kernels.launch as m; print(m.__file__)"
    assert subprocess.run([its, "-c", code], cwd=empty, capture_output=True, text=True).stdout.startswith(site)


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


@pytest.mark.slow
def test_the_network_needs_no_compiler(tmp_path):
    """torch's tracing machinery takes seconds to import; nothing on the way to a model or a training step wants it."""
    code = "import torch, sys; before = set(sys.modules); import minikeye.{}; print(*(set(sys.modules) - before))"
    for module in ("model.keye", "minivid.tasks"):
        loaded = python(code.format(module), tmp_path).stdout.split()
        assert f"minikeye.{module}" in loaded
        slow = ("torch._dynamo", "torch._inductor", "scipy", "transformers", "matplotlib")
        assert [name for name in loaded if name.startswith(slow)] == []


@pytest.mark.slow
def test_it_is_a_command_too(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "minikeye", "info", "--config", "nano"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "decoder    2 layers" in done.stdout


@pytest.mark.parametrize("name", ["KeyeConfig", "KeyeVL", "Processor"])
def test_public_names(name):
    assert getattr(minikeye, name).__name__ == name
    assert name in dir(minikeye)


def test_unknown_name():
    with pytest.raises(AttributeError, match="its public names are"):
        minikeye.Keye  # noqa: B018
