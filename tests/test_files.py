"""Files that are written whole."""

import pytest

from minikeye.files import write_whole


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
