"""How well action following can be measured: ``python -m distill.calibrate_following --scenes 24 [--model tiny --walks 6]``.

Videos of which the motion is known are read by the network (`distill.inverse_dynamics`) and by geometry (`distill.motion`, with the
same length for every translation), on mixed walks of 5 s in unseen worlds; with --model, also that model's roll-outs.
"""

from __future__ import annotations

import argparse

import cv2
import numpy as np

from distill.action_following import follow, summary
from distill.dataset import Clip
from distill.inverse_dynamics import WINDOW, load
from distill.motion import seen_motion
from distill.scenes import RESERVED_SEED, render
from distill.scenes.trajectories import random_script
from distill.suite import SUITES, control, roll_out
from distill.suite_measures import bootstrap
from worldmodel.actions import ACTION_NAMES, NUM_ACTIONS, ROTATION_UNIT_DEG, STATIC
from worldmodel.camera import ypr_from_rotation

BLUR = 2.0  # pixels of 128


def by_network(video: np.ndarray, clip: Clip) -> dict:
    motions, probabilities = load().read(video, clip.intrinsics)
    return follow(motions, probabilities > 0.5, clip)


def by_geometry(video: np.ndarray, clip: Clip) -> dict:
    """Tracks and the essential matrix; a control is held where its part of the motion is more than 0.4 of one held throughout."""
    motions = np.tile(np.eye(4), ((len(video) - 1) // WINDOW, 1, 1))
    pressed = np.zeros((len(motions), NUM_ACTIONS), dtype=bool)
    for k, motion in enumerate(motions):
        seen = seen_motion(video[k * WINDOW], video[(k + 1) * WINDOW], clip.intrinsics)
        if seen is not None:
            motion[:] = seen
        (x, y, z), (yaw, pitch, roll) = motion[:3, 3], ypr_from_rotation(motion[:3, :3]) / np.deg2rad(ROTATION_UNIT_DEG * WINDOW)
        signed = np.array([z, -z, -x, x, -y, y, pitch, -pitch, -yaw, yaw, roll, -roll])
        pressed[k, :STATIC] = signed > 0.4
        pressed[k, STATIC] = not pressed[k].any()
        motion[:3, 3] *= WINDOW
    return follow(motions, pressed, clip)


def videos(clip: Clip) -> dict[str, np.ndarray]:
    """Videos of the clip's worlds and what they are"""
    blurred = np.stack([cv2.GaussianBlur(f, (0, 0), BLUR * f.shape[1] / 128) for f in clip.frames])
    lines = ("opposite actions", "still picture", "shuffled")
    return {"truth": clip.frames, "truth, blurred": blurred, **{line: control(line, clip) for line in lines}}


def main(argv: list[str] | None = None) -> int:
    from tqdm import tqdm

    parser = argparse.ArgumentParser(prog="python -m distill.calibrate_following", description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", type=int, default=24, help="unseen worlds, one walk each")
    parser.add_argument("--first", type=int, default=RESERVED_SEED, help="the first of them; take seeds of training scenes for tuning")
    parser.add_argument("--suite", choices=sorted(SUITES), help="walk the scripts of a suite (default: one script of mixed random keys)")
    parser.add_argument("--model", help="also roll out this model")
    parser.add_argument("--walks", type=int, default=6, help="walks that the model is rolled out on")
    args = parser.parse_args(argv)
    model = None
    if args.model:
        from worldmodel.model import WorldModel

        model = WorldModel.from_pretrained(args.model)
    records: dict[tuple[str, str], list[dict]] = {}
    seeds = range(args.first, args.first + args.scenes)
    todo = [(seed, script) for seed in seeds for script in (SUITES[args.suite] if args.suite else [None])]
    for i, (seed, script) in enumerate(tqdm(todo, unit="walk")):
        clip = render(seed, script or random_script(np.random.default_rng(seed), 80))
        shown = videos(clip)
        if model is not None and i < args.walks:
            shown["model"] = roll_out(model, clip)[0]
            shown["truth of the model's walks"] = clip.frames
        for line, video in shown.items():
            for name, way in (("network", by_network), ("geometry", by_geometry)):
                records.setdefault((line, name), []).append({"seed": seed, "follow": way(video, clip)})
    print("| video | read by | rotation RPE, ° | translation RPE, steps | path error, steps | scale | controls, F1 | controls, accuracy |")
    print("| --- | --- |" + " ---: |" * 6)
    by_action = {}
    for (line, name), rows in records.items():
        found = summary(rows, bootstrap)
        cells = [found[k][0] for k in ("rotation", "translation", "ate", "scale", "f1", "accuracy")]
        print(f"| {line} | {name} | " + " | ".join(f"{v:.2f}" for v in cells) + " |")
        by_action[line, name] = found["per action"]
    print("\n| F1 of the truth | " + " | ".join(n.replace("_", " ") for n in ACTION_NAMES) + " |")
    print("| --- |" + " ---: |" * NUM_ACTIONS)
    for name in ("network", "geometry"):
        found = by_action["truth", name]
        print(f"| {name} | " + " | ".join(f"{found[n]['f1']:.2f}" if n in found else "–" for n in ACTION_NAMES) + " |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
