"""Posed video of other formats -> clips of `distill.dataset`: ``python -m distill.importers FORMAT SOURCE --out DIR``.

One file a format. Each has `entries(source, options)`, which lists recordings by name without opening them; calling an entry
reads its poses in the format's own convention and gives a `Recording` in ours. `recording.cut` makes clips of any recording.
"""
