"""One query a row, for CUDA graphs: select among as many keys as the device knows of, and attend."""
