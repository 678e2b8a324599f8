"""Links into modules: the lines are those of the name; a link to what is not there is an error that says what is."""

import pytest
from source_links import places, relink

MODULE = '''\
"""A module."""

LIMIT = 3


@decorated
def first(x):
    return x


class Box:
    def open(self):
        pass


def second():
    return (
        1
    )
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "module.py").write_text(MODULE)
    (tmp_path / "lessons").mkdir()
    return tmp_path / "lessons"


def test_places_hold_what_they_name():
    lines = MODULE.splitlines()
    found = {name: lines[first - 1 : last] for name, (first, last) in places(MODULE).items()}
    assert found == {
        "LIMIT": ["LIMIT = 3"],
        "first": ["@decorated", "def first(x):", "    return x"],
        "Box": ["class Box:", "    def open(self):", "        pass"],
        "Box.open": ["    def open(self):", "        pass"],
        "second": ["def second():", "    return (", "        1", "    )"],
    }


def test_lines_are_added_and_renewed(folder):
    """Other links stay: those to whole files, and those whose text is no name."""
    text = (
        "[`second`](../package/module.py#L1-L2) and [`Box.open`](../package/module.py), [a file](../package/module.py)"
    )
    new = text.replace("#L1-L2", "#L16-L19").replace("module.py),", "module.py#L12-L13),")
    assert relink(text, folder) == new == relink(new, folder)


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        ("[`third`](../package/module.py)", "link to `third` in ../package/module.py: it defines LIMIT, first, Box"),
        ("[`first`](../package/absent.py#L1-L2)", "link to `first` in ../package/absent.py: there is no such file"),
    ],
)
def test_a_link_to_nothing_is_refused(folder, link, reason):
    with pytest.raises(ValueError, match=reason):
        relink(link, folder)
