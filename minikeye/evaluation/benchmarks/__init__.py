"""The published video benchmarks that the report quotes: what is asked, how answers are read, what they score."""
