"""FLOPs of the runs behind the shipped weights, counted afterwards: ``python docs/weights/count_flops.py [RUN ...]``.

Training did not count then. So each run's stage is built again from random tensors by the code of its own time (a commit of this
repository, unpacked into a temporary folder), a step of every shape that the log has is made under today's counter
(`distill.flops`), optimiser included, and multiplied by the steps of the log. What the log does not tell is the recipe of
that commit: the batch above all. Exit steps of self-forcing and blocks of student_init are drawn as the run drew them.

Writes ``flops.json`` beside this file: FLOPs of a step of each shape, how many steps had it, and the sum.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
RUNS = {  # name: commit whose code counts, stage, log (or a file at that commit), batch by latent frames
    "autoencoder-1": ("f41dba8", "autoencoder", "f41dba8:docs/weights/autoencoder.jsonl", {4: 4}),
    "causal-1": ("f41dba8", "causal", "causal-1.jsonl", {6: 6, 12: 3}),
    "autoencoder": ("c108836", "autoencoder", "autoencoder.jsonl", {4: 4}),
    "causal-2": ("c108836", "causal", "causal-2.jsonl", {6: 4}),
    "causal-3": ("19b9ba5", "causal", "causal-3.jsonl", {6: 4, 14: 2}),
    "causal-4": ("d9a23e9", "causal", "causal-4.jsonl", {6: 4, 14: 2}),
    "teacher": ("834109f", "teacher", "teacher.jsonl", {6: 6, 14: 3}),
    "student-init": ("834109f", "student_init", "student-init.jsonl", {}),
    "self-forcing": ("834109f", "self_forcing", "self-forcing.jsonl", {8: 4, 14: 3, 28: 1}),
    "depth": ("658cb82", "depth", "", {}),
    "causal-5": ("5f43049", "causal", "causal-5.jsonl", {6: 4, 14: 2}),
}
DEPTH_STEPS = 2573  # there is no log of it


def generator(seed: int, step: int) -> torch.Generator:
    """As in `distill.trainer`."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) & 0x7FFF_FFFF_FFFF_FFFF)


def steps_by_latents(log: str) -> list[int]:
    """Latent frames of every step by the rows of a log, each of which stands for the steps before it; those made twice once."""
    if ":" in log:
        text = subprocess.run(["git", "show", log], cwd=REPO, capture_output=True, text=True, check=True).stdout
    else:
        text = (HERE / log).read_text()
    rows = {r["step"]: r for r in map(json.loads, text.splitlines())}
    found: list[int] = []
    for step, row in sorted(rows.items()):
        found += [int(row.get("latents", 4))] * (step - len(found))
    return found


def shapes_of(run: str) -> dict[str, int]:
    """How many steps of each shape a run had; a shape is a name for the worker."""
    _, stage, log, batches = RUNS[run]
    counts: dict[str, int] = {}

    def add(shape: str, times: int = 1) -> None:
        counts[shape] = counts.get(shape, 0) + times

    if stage == "depth":  # drawn as the stage draws: seven in ten steps see coded pictures
        for step in range(DEPTH_STEPS):
            rng = generator(0, step)
            torch.randint(43350, (32,), generator=rng)
            add("coded" if torch.rand(3, generator=rng)[0] < 0.7 else "plain")
        return counts
    for step, latents in enumerate(steps_by_latents(log)):
        if stage == "student_init":
            add(f"blocks {int(torch.randint(4, 13, (), generator=generator(0, step)))}")
            continue
        batch = batches[latents]
        shape = f"{batch}x{latents}"
        if stage == "self_forcing":
            rng = generator(0, step)
            torch.randint(240, (batch,), generator=rng)
            torch.randint(41 - latents + 1, (batch,), generator=rng)
            shape += f" {'generator' if step % 2 else 'fake'} exit {int(torch.randint(4, (), generator=rng))}"
        add(shape)
    if stage == "student_init":
        add("trajectories of 4", 24)
    return counts


# -- in the code of that time ------------------------------------------------------------------------------------------------
def count(stage: str, shapes: list[str]) -> dict[str, int]:
    """FLOPs of a step of each shape, by the `distill` that Python finds first."""
    spec = importlib.util.spec_from_file_location("flops_today", REPO / "distill" / "flops.py")
    today = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(today)
    torch.manual_seed(0)
    from distill.recipe import load_recipe
    from worldmodel.autoencoder import TinyAutoencoder
    from worldmodel.text import TextConfig

    recipe, cpu = load_recipe("tiny"), torch.device("cpu")
    channels, latents, found = recipe.autoencoder.latent_channels, 30, {}
    frames = 1 + 4 * (latents - 1)
    poses = torch.eye(4, dtype=torch.float64).repeat(2, frames, 1, 1)
    poses[:, :, 2, 3] = 0.1 * torch.arange(frames)
    actions = torch.zeros(2, frames, 13)
    actions[..., 0] = 1

    def counted(trainer, step: int, kind: int | None = None) -> int:
        def whole() -> None:
            loss = trainer.loss(step)[0]
            if loss.requires_grad:
                loss.backward()
            trainer.optimisers.step(1.0, *([] if kind is None else [kind]))

        return today.count_flops(whole)

    with tempfile.TemporaryDirectory() as scratch:
        if stage == "autoencoder":
            from distill.autoencoder import AutoencoderStage

            clips = torch.randint(0, 256, (4, 13, 128, 128, 3), dtype=torch.uint8).numpy()
            made = AutoencoderStage(recipe.autoencoder, Path(scratch), clips, clips[:1], cpu)
            return {shape: counted(made.trainer, 0) for shape in shapes}
        if stage == "depth":
            from distill.depth import DepthStage

            data = torch.randint(0, 256, (64, 128, 128, 3), dtype=torch.uint8), torch.rand(64, 64, 64).half()
            made = DepthStage(recipe.depth, Path(scratch), TinyAutoencoder(latent_channels=channels), data, data, cpu)
            for step in range(40):
                rng = generator(0, step)
                torch.randint(64, (32,), generator=rng)
                shape = "coded" if torch.rand(3, generator=rng)[0] < 0.7 else "plain"
                if shape not in found:
                    found[shape] = counted(made.trainer, step)
            return found
        from distill.latents import Walks

        groups = torch.randn(2, latents, channels, 8, 8).half()
        text = TextConfig()
        walks = Walks(groups, groups, actions, poses, torch.zeros(2, dtype=torch.int64), torch.randn(1, text.length, text.dim))
        depth = getattr(getattr(recipe, "depth", None), "widths", None)
        autoencoder = TinyAutoencoder(latent_channels=channels, **({"depth_widths": depth} if depth else {})).eval().requires_grad_(False)
        where = (walks, walks, autoencoder, cpu)
        shape = {"in_channels": channels, "out_channels": channels, "text_dim": text.dim}
        if stage == "student_init":
            return _count_student_init(recipe, shapes, Path(scratch), where, shape, counted, today.count_flops)
        for wanted in (s for s in shapes if s not in found):
            size, *rest = wanted.split()
            batch, length = map(int, size.split("x"))
            if stage == "self_forcing":
                first, second = (_count_self_forcing(recipe, length, rest[0], e, Path(scratch), where, shape, counted) for e in (0, 1))
                found |= {f"{size} {rest[0]} exit {e}": batch * (first + e * (second - first)) for e in range(4)}
                continue
            section = replace(getattr(recipe, stage), curriculum=((0.0, length, batch),))
            folder = Path(scratch) / wanted.replace(" ", "-")
            if stage == "causal":
                from distill.causal import CausalStage

                found[wanted] = counted(CausalStage(section, folder, *where).trainer, 0)
            else:
                from distill.teacher import TeacherStage

                found[wanted] = counted(TeacherStage(section, folder, *where).trainer, 0)
    return found


def _count_self_forcing(recipe, length, turn, exit_step, scratch, where, shape, counted) -> int:
    """Of one walk. AdamW multiplies no matrices, so a batch costs its walks; and every further exit step costs the same."""
    from distill.self_forcing import SelfForcingStage
    from worldmodel.transformer import CausalWorldTransformer

    section = replace(recipe.self_forcing, curriculum=((0.0, length, 1),))
    student = CausalWorldTransformer(**shape | recipe.causal.transformer)
    teacher = CausalWorldTransformer(**shape | recipe.teacher.transformer)
    made = SelfForcingStage(section, scratch / f"{length}-{turn}-{exit_step}", *where, student, teacher)
    number = ("generator", "fake").index(turn)
    for step in range(1 - number, 1000, 2):
        rng = generator(section.seed, step)
        torch.randint(len(where[0]), (1,), generator=rng)
        torch.randint(where[0].groups.shape[1] - length + 1, (1,), generator=rng)
        if int(torch.randint(section.sampler.steps, (), generator=rng)) == exit_step:
            break
    flops = counted(made.trainer, step, number)
    print(length, turn, exit_step, flops, file=sys.stderr, flush=True)
    return flops


def _count_student_init(recipe, shapes, scratch, where, shape, counted, count_flops) -> dict[str, int]:
    from distill.student_init import StudentInitStage, make_trajectories
    from worldmodel.transformer import CausalWorldTransformer

    teacher, found = CausalWorldTransformer(**shape | recipe.teacher.transformer), {}
    section = replace(recipe.student_init, trajectories=4)
    folder = scratch / "trajectories"
    found["trajectories of 4"] = count_flops(lambda: make_trajectories(teacher, where[0], where[2], folder, section, where[3]))
    made = StudentInitStage(section, scratch, *where, teacher)
    for wanted in shapes:
        blocks = wanted.removeprefix("blocks ")
        if not blocks.isdigit():
            continue
        step = next(s for s in range(1000) if int(torch.randint(4, 13, (), generator=generator(0, s))) == int(blocks))
        found[wanted] = counted(made.trainer, step)
    return found


def main(names: list[str]) -> None:
    path = HERE / "flops.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for name in names or RUNS:
        commit, stage, *_ = RUNS[name]
        counts = shapes_of(name)
        with tempfile.TemporaryDirectory() as folder:
            archive = subprocess.run(["git", "archive", commit, "worldmodel", "distill"], cwd=REPO, capture_output=True, check=True).stdout
            subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
            code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import count_flops, json; "
            code += f"print(json.dumps(count_flops.count({stage!r}, {sorted(counts)!r})))"
            done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=os.environ | {"PYTHONPATH": folder},
                                  stdout=subprocess.PIPE, text=True, check=True)  # fmt: skip
        step = json.loads(done.stdout.splitlines()[-1])
        total = sum(times * step[shape] for shape, times in counts.items())
        known[name] = {"code": commit, "steps": {s: [n, step[s]] for s, n in sorted(counts.items())}, "flops": total}
        path.write_text(json.dumps(known, indent=1) + "\n")
        print(f"{name:14} {total:.3e}")


if __name__ == "__main__":
    main(sys.argv[1:])
