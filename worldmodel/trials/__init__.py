"""``worldmodel check load | faults | soak``: a server of this machine, started as an operator starts it, and what becomes of it.

Read in this order: `report` (what is written), `server` (the process under test and links to it), `visitor` (who comes), and the trials:
`load`, `faults` (with `fuzz`) and `soak`. docs/reliability.md has their results.
"""

from __future__ import annotations

import asyncio

from worldmodel.trials.report import Report


def check(what: str, model: str = "tiny", short: bool = False) -> Report:
    """Run one of the trials; `short` is a fraction of it."""
    from worldmodel.trials import faults, load, soak

    return asyncio.run({"load": load, "faults": faults, "soak": soak}[what].run(model, short))
