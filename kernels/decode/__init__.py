"""One query a row, for CUDA graphs: select among the keys that the device knows of, attend, and a step as a whole."""
