"""What is laid out for Sphinx: links, docstrings, comments, formulas, tables. By hand, without building anything."""

import pytest

for name in ("sphinx", "latex2mathml"):  # `make ranges` installs what minikeye needs, and a site is not among it
    pytest.importorskip(name)

import docstrings  # noqa: E402
import formulas  # noqa: E402
import landmarks  # noqa: E402
import layout  # noqa: E402
import result_tables  # noqa: E402


@pytest.mark.parametrize(
    ("text", "file", "turned"),
    [
        ("[a](../minikeye/ops/door.py#L9-L12)", "notebooks/x.ipynb", "[a](source:minikeye/ops/door.py#L-9)"),
        ("[a](minikeye/ops/door.py)", "README.md", "[a](source:minikeye/ops/door.py)"),
        ("[a](kernels/)", "README.md", "[a](api/minikeye.kernels.rst)"),
        ("[a](minikeye/explore/)", "README.md", "[a](api/minikeye.explore.rst)"),
        ("[a](assets/results/mini.json)", "README.md", "[a](results/mini.md)"),
        ("[a](../README.md#look-for-yourself)", "notebooks/x.ipynb", "[a](../index.md#look-for-yourself)"),
        ("[a](solutions/00_tour.ipynb)", "notebooks/x.ipynb", "[a](solutions/00_tour.ipynb)"),
        ("[a](#here) [b](https://arxiv.org/abs/2606.10651)", "README.md", None),
    ],
)
def test_links_are_turned(text, file, turned):
    assert layout.turned(text, file) == (text if turned is None else turned)


def test_a_link_to_nothing_stops_the_build():
    with pytest.raises(ValueError, match=r"README.md links to minikeye/nothing.py, which is not there"):
        layout.turned("[a](minikeye/nothing.py)", "README.md")


def test_a_name_that_is_gone_stops_the_build(tmp_path):
    with pytest.raises(ValueError, match="link to `select_bottomk`"):
        layout.source_links.relink("[`select_bottomk`](../../minikeye/ops/door.py)", layout.ROOT / "assets" / "site")


def test_explorers_are_linked_where_there_are_some(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "ROOT", tmp_path)
    assert layout.shown() == ""
    folder = tmp_path / "assets" / "explorer"
    folder.mkdir(parents=True)
    (folder / "bunny.html").write_text("<html><title> The card\n</title></html>", encoding="utf-8")
    assert "[The card](source:explorer/bunny.html)" in layout.shown()


def test_docstrings_are_plain_words():
    lines = ["S[t] = |x_|, *any* `code_`:", "", "    a  b", "    c  d", "then", "- one", "  more", "- two"]
    assert docstrings.marked_up(lines) == [
        r"S\[t\] = \|x\_\|, \*any\* \ ``code_``\ :",
        "",
        "",
        "::",
        "",
        "    a  b",
        "    c  d",
        "",
        "then",
        "",
        "- one",
        "  more",
        "- two",
    ]


def test_comments_of_fields():
    text = 'class A:\n    x: int  # bytes\n    y: str = "#"\n    # not of a field\n    z: int = 3  # seconds, # too\n'
    assert docstrings.comments(text) == {"A.x": "bytes", "A.z": "seconds, # too"}


def test_words_in_formulas_are_words():
    drawn = formulas.mathml(r"\mathrm{softmax}(xy)", "inline")
    assert "<mi>softmax</mi>" in drawn and "<mi>x</mi><mi>y</mi>" in drawn and 'display="inline"' in drawn


def test_a_theme_that_writes_something_else_is_noticed():
    page = "".join(old + ">" for old in landmarks.EVERYWHERE)
    assert landmarks.with_landmarks(page).count("aria-label=") == 4
    with pytest.raises(landmarks.SphinxError, match="sidebar-tree"):
        landmarks.with_landmarks(page.replace("sidebar-tree", "sidebar-list"))


def test_parameters_are_no_list_of_definitions():
    page = "".join(old + ">" for old in landmarks.EVERYWHERE)
    page += '<dl>\n<dd><em class="sig-param">x</em>,</dd>\n</dl><dl>\n<dt>a</dt><dd>b</dd>\n</dl>'
    assert landmarks.with_landmarks(page).count("<dl>") == 1


def test_columns_are_what_most_lines_hold():
    rows = [{"seed": 0, "by": {}, "n": 3}, {"seed": 1, "arm": "rl", "n": 4, "loss": None}]
    assert result_tables.columns(rows) == ["seed", "n", "arm", "loss"]
    many = [{f"k{n}": n for n in range(40)}, {"k39": 0}]
    assert result_tables.columns(many) == [*[f"k{n}" for n in range(result_tables.MOST_COLUMNS - 1)], "k39"]


def test_a_table_by_hand():
    text = result_tables.table(["a", "b"], [["x|y", 1.5], ["`z`", 2]])
    assert text.splitlines()[3:7] == ["| a | b |", "| --- | --: |", "| x\\|y | 1.5 |", "| `z` | 2 |"]
    assert result_tables.table(["a"], []) == "None."
