"""Calls of functions, in the form of the released template: how a model asks for one, and what it is told.

In the order of reading: `calls` (the words), `functions` (what may be called: schemas, and a call carried out),
`sandbox` (where a model's code runs), `shipped` (the tools that come with minikeye: `look` and `python`). Chat and
agents use the same.
"""
