"""``python -m worldmodel.trials.jumping_clock serve ...``: the terminal's commands where the wall clock jumps by hours, back and forth,
every second: as after a suspend, or when somebody sets it.
"""

from __future__ import annotations

import time

_true = time.time
JUMPS_S = (0.0, 86_400.0, -3_600.0, 7_200.0, -86_400.0)


def _jumping() -> float:
    now = _true()
    return now + JUMPS_S[int(now) % len(JUMPS_S)]


if __name__ == "__main__":
    time.time = _jumping
    from worldmodel.cli import main

    raise SystemExit(main())
