"""The explorer in a notebook: controls, what they choose from, the page that is drawn (controls need ipywidgets)."""
