"""Which model a command line or a config file names, and loading it as they say. Importing this loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worldmodel.model import WorldModel
    from worldmodel.runtime import RuntimeConfig

DEPTH_HELP = "pretrained estimator of the start pictures' depth, for photographs: folder or hub id (default: the model's own small network)"


@dataclass(frozen=True)
class ModelSettings:
    """`name` is a packaged model, a folder or a hub id, `memory` one of `configs.MEMORY_NAMES`, `depth` a folder or hub id of a depth
    estimator (`worldmodel.depth_estimator`); None is the model's or machine's own."""

    name: str = "tiny"
    memory: str | None = None
    steps: int | None = None
    device: str | None = None
    threads: int | None = None
    depth: str | None = None


def load_model(settings: ModelSettings, runtime: RuntimeConfig | None = None, progress: bool = True) -> WorldModel:
    """The model that the settings name; without `progress` bars where a log is written. Raises as `WorldModel.from_pretrained` does."""
    import torch

    from worldmodel.model import WorldModel

    if not progress:
        import diffusers
        import transformers

        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    model = WorldModel.from_pretrained(settings.name, device=settings.device, runtime=runtime, depth=settings.depth)
    if settings.memory is not None:
        model = model.with_memory(model.config.memory.named(settings.memory))
    return model if settings.steps is None else model.with_steps(settings.steps)
