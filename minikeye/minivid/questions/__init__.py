"""More that can be asked about a video: what its events answer as a whole, one task a file."""
