"""The command line, `minikeye` or `python -m minikeye`: main reads, commands act, opening finds the model."""
