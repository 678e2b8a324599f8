"""The explorer in a notebook: controls, what they choose from, and the page that is drawn (needs ipywidgets)."""
