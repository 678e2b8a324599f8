"""Files that are written whole, files of a folder from elsewhere."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from minikeye import files
from minikeye.files import file_in, local_folder, read_json, whole_file, whole_folder, write_whole


def test_replaces_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a.json"
    for data in (b"first", b"second"):
        write_whole(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_a_file_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="got the folder"):
        write_whole(tmp_path / "folder", b"")
    with pytest.raises(NotADirectoryError, match=r"make .*absent first"):
        write_whole(tmp_path / "absent" / "a.json", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_links_pipes_and_devices(tmp_path):
    """A link stays one, to the new file; what cannot be replaced is left alone, in one line."""
    (tmp_path / "a.json").write_bytes(b"old")
    (tmp_path / "link").symlink_to("a.json")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "a.json").read_bytes() == b"new"
    (tmp_path / "nowhere").symlink_to("absent/x")
    os.mkfifo(tmp_path / "pipe")
    for name in ("nowhere", "pipe"):
        for write in (write_whole, lambda path, _: fill(path)):
            with pytest.raises(
                OSError, match=rf"{name} is a link to absent/x, which is not there|{name}, which is"
            ) as e:
                write(tmp_path / name, b"")
            assert "\n" not in str(e.value)
    with pytest.raises(FileExistsError, match="/dev/null, which is a pipe or a device"):
        write_whole("/dev/null", b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "link", "nowhere", "pipe"]


def fill(path: Path, word: str = "new") -> None:
    with whole_folder(path) as new:
        (new / "a").write_text(word, encoding="utf-8")


def test_a_mount_point(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(files.os.path, "ismount", lambda path: path == tmp_path / "disk")
    with pytest.raises(OSError, match=r"disk is a mount point, .*: name a folder inside it"):
        fill(tmp_path / "disk")
    fill(tmp_path / "disk" / "inside")
    assert (tmp_path / "disk" / "inside" / "a").is_file()


def killed(tmp_path: Path, code: str) -> None:
    """Run a writer in another Python that ends as by kill -9."""
    code = f"import os\nfrom minikeye import files\nkill = lambda *_: os.kill(os.getpid(), 9)\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.slow
def test_what_killed_writers_left_is_swept(tmp_path):
    """At the next writing of the same name, and nothing of a writer that lives."""
    killed(tmp_path, "with files.whole_folder('m') as new: (new / 'a').touch(); kill()")
    killed(tmp_path, "with files.whole_file('f') as new: kill()")
    left = sorted(tmp_path.iterdir())
    assert len(left) == 2
    with whole_folder(tmp_path / "m") as mine, whole_file(tmp_path / "f") as part:
        assert sorted(tmp_path.iterdir()) == sorted([mine, part])
        fill(tmp_path / "m", "other")  # two writers at a time
        write_whole(tmp_path / "f", b"other")
        part.write_bytes(b"mine")
        (mine / "a").write_text("mine", encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "m"]
    assert (tmp_path / "m" / "a").read_text(encoding="utf-8") == "mine" and (tmp_path / "f").read_bytes() == b"mine"


RENAMES = """
rename, calls = os.replace, []
def stop(old, new):
    calls.append(new)
    if len(calls) == {}: kill()
    rename(old, new)
os.replace = stop
with files.whole_folder('m') as new: (new / 'a').write_text('new', encoding='utf-8')
"""


@pytest.mark.slow
def test_killed_between_the_renames(tmp_path):
    """The old folder is read under its other name, with a word about it, and put back before the next writing."""
    fill(tmp_path / "m", "old")
    killed(tmp_path, RENAMES.format(2))
    assert not (tmp_path / "m").exists()
    with pytest.warns(UserWarning, match=r"m was being replaced when its writer was killed: reading .*\.m-old"):
        found = local_folder(tmp_path / "m")
    assert (found / "a").read_text(encoding="utf-8") == "old"
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "m"):
        assert (tmp_path / "m" / "a").read_text(encoding="utf-8") == "old"
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    fill(tmp_path / "m")
    assert (tmp_path / "m" / "a").read_text(encoding="utf-8") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


# -------------------------------------------------------------------------------------------------------- local folders


@pytest.mark.parametrize("name", ["./nothere", "../nothere", "~/nothere", "nothere/", "/nothere", "a/b/c", "", "a/b c"])
def test_a_mistyped_folder_is_not_asked_for(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    if name:
        with pytest.raises(FileNotFoundError, match=f"^no folder {name}: give a checkpoint folder or a hub id such as"):
            local_folder(name)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=r"checkpoints is a folder here, so this is a path and no hub id"):
        local_folder("checkpoints/keye")


def test_a_hub_that_does_not_answer(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("\nno route to host\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(FileNotFoundError, match=r"^no folder owner/name, and .* from the hub: no route to host$"):
        local_folder("owner/name")


# ------------------------------------------------------------------------------------------------------ read with care


def test_read_json(tmp_path):
    assert read_json(tmp_path / "absent.json") == {}
    (tmp_path / "a.json").write_text('{"a": "é"}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": "é"}


@pytest.mark.parametrize(
    "data", [b"{", b"", b"[1]", b"3", b'{"a": "\xff"}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_what_is_not_one_object(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.json (is not JSON|must hold a JSON object)"):
        read_json(tmp_path / "a.json")


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(ValueError, match=r"a\.json is no file"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    "name", ["../x", "/etc/hostname", "a/b", "a\\b", "", ".", "..", "a\0b", "\ud800", 3, None, "x" * 300]
)
def test_only_plain_names(tmp_path, name):
    with pytest.raises(ValueError, match=r"expected the plain name of a file in|has no file 'x"):
        file_in(tmp_path, name)


def test_links_that_lead_out(tmp_path):
    """To a file elsewhere, to nothing elsewhere, in a circle; a link within the folder is as good as its file."""
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.json").write_text("{}", encoding="utf-8")
    (folder / "inside.json").write_text('{"a": 1}', encoding="utf-8")
    (folder / "link.json").symlink_to("inside.json")
    assert read_json(folder / "link.json") == {"a": 1}
    for name, target in (("out.json", "../secret.json"), ("gone.json", "/nowhere/x.json")):
        (folder / name).symlink_to(target)
        with pytest.raises(ValueError, match=f"{name} is a link out of its folder, to /.*: put the file itself there"):
            read_json(folder / name)
    (folder / "circle.json").symlink_to("circle.json")
    with pytest.raises(ValueError, match="circle"):
        read_json(folder / "circle.json")


def test_links_of_a_hub_snapshot(tmp_path):
    """They lead to the cache of their own repository, and no further."""
    for owner in ("a", "b"):
        (tmp_path / f"models--{owner}--x" / "blobs").mkdir(parents=True)
        (tmp_path / f"models--{owner}--x" / "blobs" / "123").write_text('{"a": 1}', encoding="utf-8")
    snapshot = tmp_path / "models--a--x" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "own.json").symlink_to("../../blobs/123")
    (snapshot / "other.json").symlink_to("../../../models--b--x/blobs/123")
    assert read_json(snapshot / "own.json") == {"a": 1}
    with pytest.raises(ValueError, match=r"other\.json is a link out of its folder"):
        read_json(snapshot / "other.json")
