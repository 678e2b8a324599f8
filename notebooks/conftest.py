"""For `make validate`: a lesson whose model is not on this machine is left out in one line."""

import pytest

from execute import all_notebooks, left_out


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if absent := left_out(item.path):
            item.add_marker(pytest.mark.skip(reason=absent))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for absent in filter(None, map(left_out, all_notebooks())):
        terminalreporter.write_line(f"==> {absent}")
