"""What an operator looks at: counters, gauges and histograms in Prometheus' text format, one registry for each application."""

from __future__ import annotations

import time

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_STEP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0)
_ENCODE_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_DELAY_BUCKETS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 5.0)


class Metrics:
    """Sessions observe and count; the gauges are set when somebody asks (`render`). Seconds and bytes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = dict(registry=self.registry)
        self.step = Histogram("worldmodel_step_seconds", "One world's step: its batch, frames and memory", buckets=_STEP_BUCKETS, **own)
        self.encode = Histogram("worldmodel_encode_seconds", "Encoding one frame", buckets=_ENCODE_BUCKETS, **own)
        self.action_to_send = Histogram(
            "worldmodel_action_to_send_seconds", "From an action's arrival until a frame with it leaves", buckets=_DELAY_BUCKETS, **own
        )
        self.frames_sent = Counter("worldmodel_frames_sent", "Frames sent", **own)
        self.frames_dropped = Counter("worldmodel_frames_dropped", "Frames skipped because the link was too slow", **own)
        self.bytes_sent = Counter("worldmodel_frame_bytes_sent", "Bytes of frames sent", **own)
        self.refused = Counter("worldmodel_refused", "Visitors and requests refused", ["reason"], **own)
        self.worlds = Gauge("worldmodel_worlds", "Worlds that live", **own)
        self.room = Gauge("worldmodel_worlds_room", "Worlds that may live at once", **own)
        self.waiting = Gauge("worldmodel_queue", "Visitors in line", **own)
        self.batch_size = Gauge("worldmodel_batch_size", "Worlds stepped together, mean of the last batches", **own)
        self.cache_bytes = Gauge("worldmodel_cache_bytes", "Memories of all worlds", **own)

    def render(self) -> bytes:
        return generate_latest(self.registry)


class ActionDelay:
    """Time from an action's arrival to the first frame that shows it; the oldest that was not shown yet counts."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram, self._waiting = histogram, None

    def arrived(self, seq: int) -> None:
        if self._waiting is None:
            self._waiting = seq, time.monotonic()

    def sent(self, seq: int) -> None:
        if self._waiting is not None and seq >= self._waiting[0]:
            self._histogram.observe(time.monotonic() - self._waiting[1])
            self._waiting = None

    def forget(self) -> None:
        self._waiting = None
