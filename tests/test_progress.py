"""The bar shows to people only, and never changes what is iterated over."""

import sys
from types import SimpleNamespace

import pytest

from minikeye.progress import progress


def watch(monkeypatch, terminal, quiet="", shell=None):
    """Set what `progress` looks at: is stderr a terminal, MINIKEYE_QUIET, and the shell that IPython reports."""
    monkeypatch.setenv("MINIKEYE_QUIET", quiet)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def test_bar_on_a_terminal(monkeypatch, capsys):
    watch(monkeypatch, terminal=True)
    assert list(progress(iter([3, 1]), "counting", total=2)) == [3, 1]
    assert "counting" in capsys.readouterr().err


def test_quiet_wins(monkeypatch, capsys):
    watch(monkeypatch, terminal=True, quiet="1", shell=SimpleNamespace(kernel=None))
    assert list(progress([3, 1], "counting")) == [3, 1]
    assert capsys.readouterr().err == ""


JUPYTER, TERMINAL_IPYTHON = SimpleNamespace(kernel=None), SimpleNamespace()


@pytest.mark.parametrize(("shell", "shown"), [(JUPYTER, True), (TERMINAL_IPYTHON, False), (None, False)])
def test_without_a_terminal(monkeypatch, capsys, shell, shown):
    watch(monkeypatch, terminal=False, shell=shell)
    assert list(progress([3, 1], "counting")) == [3, 1]
    assert ("counting" in capsys.readouterr().err) == shown
