"""`minikeye read`: what it refuses, and with the real model that it prints the line that holds the answer."""

import json
import re
import textwrap
from pathlib import Path

import pytest

from minikeye.checkpoint.gguf_weights import gguf_config
from minikeye.checkpoint.indexers import read_indexer, taught_length
from minikeye.cli.main import main
from minikeye.cli.reading import cut, shown, text_of
from minikeye.explore.passage import PassageSelection
from minikeye.explore.passage.reading import INDEXERS

NEEDLE = "The secret number of the harbour is 4719."
QUESTION = "What is the secret number of the harbour?"


def refused(capsys, *argv: str) -> str:
    assert main(["read", *argv]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "Traceback" not in said.err
    return said.err


@pytest.fixture
def note(tmp_path) -> Path:
    path = tmp_path / "note.txt"
    path.write_text("one\ntwo\n\nfour\n", encoding="utf-8")
    return path


def test_files_that_are_no_text(tmp_path, note, capsys):
    for name, content in (("empty", b""), ("blank", b" \n\t\n"), ("latin", "caf\xe9".encode("latin-1"))):
        (tmp_path / name).write_bytes(content)
    assert "no text file" in refused(capsys, str(tmp_path / "absent"), QUESTION)
    assert "no text file" in refused(capsys, str(tmp_path), QUESTION)
    assert "empty is empty" in refused(capsys, str(tmp_path / "empty"), QUESTION)
    assert "blank is empty" in refused(capsys, str(tmp_path / "blank"), QUESTION)
    assert "latin is not UTF-8 text: byte 4 begins no character" in refused(capsys, str(tmp_path / "latin"), QUESTION)
    assert "has 4 lines" in refused(capsys, str(note), QUESTION, "--lines", "5-9")
    assert "these lines of" in refused(capsys, str(note), QUESTION, "--lines", "3-3")


@pytest.mark.parametrize("lines", ["3", "0-2", "5-2", "a-b", "-"])
def test_lines_are_a_range(note, lines, capsys):
    with pytest.raises(SystemExit):
        main(["read", str(note), QUESTION, f"--lines={lines}"])
    assert "expected A-B such as 10-200, lines counted from 1" in capsys.readouterr().err


def test_files_to_write_are_tried_first(note, tmp_path, capsys, monkeypatch):
    """Before the model is looked for."""
    monkeypatch.setenv("MINIKEYE_REAL", str(tmp_path / "none"))
    assert "--html" in refused(capsys, str(note), QUESTION, "--html", str(tmp_path / "page.txt"))
    assert "--json" in refused(capsys, str(note), QUESTION, "--json", str(tmp_path / "absent" / "x.json"))
    assert "`make real` fetches it" in refused(capsys, str(note), QUESTION)


def test_lines_keep_their_numbers(note):
    assert text_of(note, None) == ("one\ntwo\n\nfour\n", 1)
    assert text_of(note, (2, 3)) == ("two\n", 2) and text_of(note, (4, 99)) == ("four", 4)


def test_a_mark_of_byte_order_is_no_text(tmp_path):
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfone")
    assert text_of(tmp_path / "bom.txt", None) == ("one", 1)


def test_a_terminal_is_not_told_what_to_do():
    """Lines come from anywhere: no escape sequence reaches the terminal."""
    assert shown("\ta\x1b[2Jb\x07\tc\r") == "a\ufffd[2Jb\ufffd c" and shown("漢 😀") == "漢 😀"
    assert cut("abcdef", 4) == "abc…" and cut("abcd", 4) == "abcd"


@pytest.mark.slow
def test_what_the_model_refuses(smollm2_file, note, tmp_path, capsys):
    for argv, message in (
        (("--topk", "0"), "--topk must be at least 1, got 0"),
        (("--max-new-tokens", "0"), "--max-new-tokens must be at least 1"),
        (("--layer", "30"), "--layer must lie in 0..29, the layers of this model, got 30"),
        (("--indexers", str(tmp_path)), "expected indexer.json in"),
    ):
        assert message in refused(capsys, str(note), QUESTION, *argv)
    assert "expected a question with words" in refused(capsys, str(note), "  ")
    long = tmp_path / "long.txt"
    long.write_text("".join(f"line {n} of a long text\n" for n in range(2000)), encoding="utf-8")
    said = refused(capsys, str(long), QUESTION)
    assert re.search(r"a prompt of 2\d,\d{3} tokens, which with 48 of answer do not fit into .* 8,192", said)
    fit = int(re.search(r"its first ([\d,]+) lines do, --lines 1-(\d+)", said)[2])
    words = f"{QUESTION} {'really ' * 9000}"
    assert "not even its first line does" in refused(capsys, str(note), words)
    _check_most(smollm2_file, long, fit)


def _check_most(gguf: Path, path: Path, fit: int) -> None:
    """So many lines fit by the prompt's own count, and not many more would."""
    from minikeye.explore.passage.reading import TextPrompt
    from minikeye.inputs.gguf_tokenizer import gguf_tokenizer

    tokenizer, lines = gguf_tokenizer(gguf), path.read_text(encoding="utf-8").split("\n")
    long = [len(TextPrompt.of(gguf, tokenizer, "\n".join(lines[:n]), QUESTION).ids) + 47 for n in (fit, fit + 2)]
    assert long[0] <= 8192 < long[1]


@pytest.mark.slow
def test_the_line_that_holds_the_answer(smollm2_file, tmp_path, capsys):
    """In the Python library's textwrap, 80 lines of it, a number is hidden; from line 41 on the file is not shown."""
    lines = Path(textwrap.__file__).read_text(encoding="utf-8").split("\n")[:80]
    text, page, numbers = tmp_path / "text.py", tmp_path / "page.html", tmp_path / "numbers.json"
    text.write_text("\n".join([*lines[:30], NEEDLE, *lines[30:]]), encoding="utf-8")
    options = ["--lines", "5-81", "--html", str(page), "--json", str(numbers)]
    assert main(["read", str(text), QUESTION, *options]) == 0
    out, err = capsys.readouterr()
    assert "answer   The secret number of the harbour is 4719." in out
    rows = [row.split(None, 1)[0] for row in out.split("by chance  text\n")[1].split("\n\n")[0].splitlines()]
    assert "31" in rows and len(rows) == 8 and NEEDLE in out.split("text\n")[1]
    tokens = int(re.search(r"prompt +([\d,]+) tokens; a query reads 512 of them", err)[1].replace(",", ""))
    assert tokens > 600
    selection = PassageSelection.from_json(numbers.read_text(encoding="utf-8"))
    assert selection.sentence() in out and selection.first_line == 5 and len(selection.layers) == 30
    assert len(selection.heads) == 4  # as the page says where it has no room for them
    assert json.loads(numbers.read_text(encoding="utf-8"))["answer"] == selection.answer
    assert NEEDLE.split()[-1][:-1] in page.read_text(encoding="utf-8")

    assert main(["read", str(text), QUESTION, "--dense", "--lines", "5-50", "--layer", "3"]) == 0
    out, err = capsys.readouterr()
    assert "Every key in sight is read and nothing is selected" in out and "Layer 3, mean over" in out
    assert "a query reads all of them" in err and "4719" in out

    assert main(["read", str(text), QUESTION, "--topk", "64", "--max-new-tokens", "2", "--lines", "5-50"]) == 0
    out, err = capsys.readouterr()
    assert "taught with 512 keys a query; this reads 64" in err and "mean over 2 queries" in out
    assert "the indexers were taught on" not in err


def test_what_ships_was_taught_on_texts_as_long_as_the_model_takes(smollm2_file):
    assert taught_length(INDEXERS) == gguf_config(smollm2_file, read_indexer(INDEXERS)).text.max_positions


@pytest.mark.slow
@pytest.mark.parametrize(("more", "told"), [((), True), (("--dense",), False)])
def test_beyond_the_length_that_was_taught(smollm2_file, note, capsys, monkeypatch, more, told):
    monkeypatch.setattr("minikeye.checkpoint.indexers.taught_length", lambda folder: 20)
    assert main(["read", str(note), QUESTION, "--max-new-tokens", "1", *more]) == 0
    said = "the indexers were taught on 20 tokens and choose badly beyond: --lines or --dense"
    assert (said in capsys.readouterr().err) == told
