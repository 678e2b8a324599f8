"""The explorer as one web page of its own: what a record holds, without Python and without a network."""
