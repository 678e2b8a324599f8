"""Files that are written whole, files of a folder from elsewhere."""

import pytest

from minikeye.files import file_in, read_json, write_whole


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
