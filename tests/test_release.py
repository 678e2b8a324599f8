"""The files that a release needs beside the code: valid, and in step with it."""

import json
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import minikeye

ROOT = Path(__file__).resolve().parent.parent
BINDER = ROOT / ".binder"

# Of the Citation File Format 1.2.0: https://github.com/citation-file-format/citation-file-format, schema-guide.md.
KEYS = {
    "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords",
    "license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact",
    "repository-code", "title", "type", "url", "version",
}  # fmt: skip


def faults(cff: dict[str, Any]) -> list[str]:
    """What the format would refuse of the keys that are used here."""
    out = [f"{key} is missing" for key in ("authors", "cff-version", "message", "title") if not cff.get(key)]
    out += [f"{key} is unknown" for key in cff.keys() - KEYS]
    out += [] if cff.get("cff-version") == "1.2.0" else ["cff-version is not 1.2.0"]
    out += [] if cff.get("type", "software") in ("software", "dataset") else ["type is neither software nor dataset"]
    out += [f"{key} is no text" for key in ("message", "title", "abstract") if not isinstance(cff.get(key, ""), str)]
    out += [] if isinstance(cff.get("version", ""), str | int | float) else ["version is neither text nor number"]
    for work in [cff, *cff.get("references", [])]:
        people = work.get("authors", [])
        out += [f"{one} has no name" for one in people if not {"name", "family-names", "given-names"} & one.keys()]
        out += [f"{work.get('title')} has no authors"] if not people else []
        for one in work.get("identifiers", []):
            known = one.get("type") in ("doi", "url", "swh", "other") and isinstance(one.get("value"), str)
            out += [] if known else [f"{one} is no identifier"]
    for work in cff.get("references", []):
        out += [f"a reference lacks {key}" for key in ("type", "title") if not work.get(key)]
        out += [] if isinstance(work.get("year", 0), int) else ["a year is no number"]
    return out


def test_citation_is_valid_and_of_this_version() -> None:
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert faults(cff) == []
    assert (str(cff["version"]), cff["license"]) == (minikeye.__version__, project["license"])
    assert [one["name"] for one in cff["authors"]] == [one["name"] for one in project["authors"]]
    assert cff["references"][0]["identifiers"][0]["value"] in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"title": None}, "title is missing"),
        ({"cff-version": "2.0"}, "cff-version is not 1.2.0"),
        ({"author": []}, "author is unknown"),
        ({"authors": [{"email": "a@b"}]}, "{'email': 'a@b'} has no name"),
        ({"references": [{"title": "x", "authors": [{"name": "y"}]}]}, "a reference lacks type"),
    ],
)
def test_a_faulty_citation_is_seen(change, said) -> None:
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert said in faults(cff | change)


def test_changelog_keeps_the_form() -> None:
    """Versions as headings, the newest first, in each only the six kinds of change, each with at least one line."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert text.startswith("# Changelog\n")
    versions = re.findall(r"^## \[([^\]]+)\](?: - (\d{4}-\d\d-\d\d))?$", text, re.M)
    assert versions[0][0] == "Unreleased" and all(date for _, date in versions[1:])
    assert len(versions) == text.count("\n## ")
    kinds = re.findall(r"^### (.*)\n\n(?=- )", text, re.M)
    assert len(kinds) == text.count("\n### ") and set(kinds) <= {
        "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security",
    }  # fmt: skip


def test_binder_installs_what_is_tested() -> None:
    """The pin of torch is the tested one, as a CPU build; the rest is the repository's own list."""
    lines = (BINDER / "requirements.txt").read_text(encoding="utf-8").splitlines()
    [torch] = [line for line in lines if line.startswith("torch==")]
    [other] = [line.removeprefix("-r ") for line in lines if line.startswith("-r ")]
    assert (BINDER / other).resolve() == ROOT / "requirements.txt"
    assert torch.removesuffix("+cpu") in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    version = tuple(map(int, (BINDER / "runtime.txt").read_text().strip().removeprefix("python-").split(".")))
    assert (3, 11) <= version <= (3, 13)
    post = BINDER / "postBuild"
    assert post.stat().st_mode & 0o100 and subprocess.run(["bash", "-n", post]).returncode == 0


# ------------------------------------------------------------------------------------------------------------- Colab


def finder() -> dict[str, Any]:
    """The functions of the notebook's first code cell."""
    cells = json.loads((BINDER / "colab.ipynb").read_text(encoding="utf-8"))["cells"]
    code = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    names: dict[str, Any] = {}
    exec(compile(code, "colab.ipynb", "exec"), names)
    return names


@pytest.mark.parametrize("inside", ["", "minikeye", "drive/MyDrive/minikeye"])
def test_colab_finds_a_clone(tmp_path, inside) -> None:
    folder = tmp_path / inside
    (folder / "minikeye").mkdir(parents=True)
    (folder / "pyproject.toml").touch()
    (folder / "minikeye" / "keye.py").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pyproject.toml").touch()
    assert finder()["find_repository"](tmp_path) == folder


def test_colab_unpacks_a_zip_file(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "minikeye-main.zip", "w") as archive:
        for name in ("pyproject.toml", "minikeye/keye.py"):
            archive.writestr(f"minikeye-main/{name}", "")
    assert finder()["find_repository"](tmp_path) == tmp_path / "minikeye-main" / "minikeye-main"


def test_colab_says_what_is_missing(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="clone it, or drag its ZIP file in"):
        finder()["find_repository"](tmp_path)
