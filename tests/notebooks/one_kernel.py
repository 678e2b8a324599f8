"""A running kernel for a notebook, as the tests beside this file need it."""

import os
from contextlib import contextmanager
from pathlib import Path

import execute
from nbclient import NotebookClient
from nbformat import NotebookNode


@contextmanager
def kernel(notebook: NotebookNode, path: Path):
    """A client with a running kernel for `notebook`, which lies at `path`."""
    client = NotebookClient(
        notebook,
        timeout=execute.CELL_SECONDS,
        kernel_name="python3",
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=40"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    places = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])  # for `interruption`
    ours = execute.ENVIRONMENT | {"OMP_NUM_THREADS": "1", "PYTHONPATH": places.rstrip(os.pathsep)}
    with client.setup_kernel(env=os.environ | ours):
        yield client
