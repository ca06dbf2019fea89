"""Several checkpoints of one world model, side by side, on walks that training never saw.

``python -m distill.compare before=FOLDER ode=FOLDER self-forcing=FOLDER --steps 4 2 --out docs/results-distilled``

Every model walks the same 20 s at every step count, in two sets apart: gallery worlds from reserved start views (worlds that
the weights know) and worlds that were never seen. Writes results.json, table.md and sheet.png; the columns are defined in
docs/training.md. Each walk goes into walks.jsonl as it is done, named after the weights, so a second call with the same
command goes on, and one with more walks or models adds them. Three lines calibrate the measures: the rendered truth, the
truth of the opposite actions, and the start picture standing still.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from distill.autoencoder import psnr
from distill.dataset import Clip
from distill.evaluate import REVISITS, Case, roll_out
from distill.measures import measure, summary
from distill.scenes import FPS, GALLERY_SEEDS, RESERVED_SEED, RESERVED_START, render
from distill.scenes.trajectories import script_text
from worldmodel.actions import parse_script
from worldmodel.model import ModelError, WorldModel
from worldmodel.runtime import RuntimeConfig

TOUR = (
    "w*8 w+left*24 left*16 a*12 up*8 right*24 down*8 w+right*12 d*12 r*8 left*12 f*8 o*12 u*12 s*16 w+down*8 w+up*8 "
    "left*24 right*24 d+left*16 a+right*16 s+right*12 w*8 .*4 left*8"
)
"""Twenty seconds in which every key comes up, alone or with another, and the camera comes back to what it saw."""
REVISIT = REVISITS["5 s"]
COLUMNS = (0, 1, 2, 5, 10, 20)  # seconds, of the sheet
SETS = {"known": "worlds that the weights know", "unseen": "unseen worlds"}
CALIBRATION = ("truth", "opposite actions", "still picture")
VERSION = 1  # counts up when a measure changes, so that old lines of walks.jsonl are not mixed with new ones


class CompareError(ValueError):
    """Models that cannot be compared, or labels that cannot be read. One clear sentence."""


@dataclass(frozen=True)
class Line:
    """A row of the table: a model at a step count, or (without a model) a calibration."""

    label: str
    steps: int | None = None
    identity: str = ""
    model: WorldModel | None = None


def identity(model: WorldModel) -> str:
    """What decides a model's frames but the number of steps: its fingerprint, and a hash of autoencoder, depth estimator, configuration and
    switches."""
    config = asdict(model.config) | {k: v for k, v in asdict(model.runtime).items() if v != getattr(RuntimeConfig(), k)}
    del config["name"], config["sampler"]["steps"]
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    networks = [getattr(model.autoencoder, "vae", model.autoencoder)]
    networks += [] if model.depth_estimator is None else [model.depth_estimator.network]
    for name, value in (pair for network in networks for pair in network.state_dict().items()):
        digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
    return f"{model.fingerprint}-{digest.hexdigest()[:8]}"


def lines_of(models: dict[str, WorldModel], steps: list[int]) -> list[Line]:
    """The calibrations, then every model at every step count; raises `CompareError` for models of different sizes."""
    first = next(iter(models.values()))
    for label, model in models.items():
        if label in CALIBRATION:
            raise CompareError(f"{label!r} is a line of its own in the table; call the model something else.")
        if model.size != first.size or model.fps != FPS:
            raise CompareError(
                f"{label!r} makes {model.size[0]}x{model.size[1]} pictures at {model.fps} a second; "
                f"all models need the size of the first ({first.size[0]}x{first.size[1]}) and {FPS:.0f} a second."
            )
    identities = {label: identity(model) for label, model in models.items()}
    calibration = [Line(label, identity=f"{label} {first.size[0]}x{first.size[1]}") for label in CALIBRATION]
    return calibration + [
        Line(label, n, identities[label], model.with_steps(n)) for label, model in models.items() for n in dict.fromkeys(steps)
    ]


def walks_of(name: str, count: int, script: str = TOUR) -> list[Case]:
    """The walks of a set; a larger count begins with those of a smaller. Families and gallery worlds come in turn."""
    if name == "known":
        worlds = list(GALLERY_SEEDS)
        return [Case(worlds[5 * i % len(worlds)], RESERVED_START + i // len(worlds), script) for i in range(count)]
    return [Case(RESERVED_SEED + i, 0, script) for i in range(count)]


# -- one walk ----------------------------------------------------------------------------------------------------------
def play(line: Line, case: Case, clip: Clip, back: Clip) -> tuple[dict, np.ndarray]:
    """The record of one line on one walk, and its video; `clip` is the truth, `back` the truth of turning away and back."""
    if line.model is not None:
        chunk_ms: list[float] = []
        video = roll_out(line.model, clip, chunk_ms=chunk_ms)
        returned = roll_out(line.model, back)
        return measure(video, clip) | {
            "revisit": float(psnr(back.frames[-4:], returned[-4:]).mean()),
            "chunk_ms": [round(ms, 2) for ms in chunk_ms],
            "chunk_frames": line.model.chunk_frames,
            "threads": torch.get_num_threads(),
            "device": line.model.device.type,
        }, video
    if line.label == "opposite actions":
        video = render(case.seed, [a.opposite() for a in parse_script(case.script)], start=case.start, size=clip.frames.shape[1:3]).frames
    else:
        video = clip.frames if line.label == "truth" else np.broadcast_to(clip.frames[:1], clip.frames.shape)
    return measure(video, clip), video


# -- all walks ---------------------------------------------------------------------------------------------------------
def read_records(path: Path) -> dict[str, dict]:
    """Records of walks.jsonl by key; a line that was cut off when a run was stopped is removed from the file."""
    if not path.exists():
        return {}
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return {record["key"]: record for record in map(json.loads, whole.splitlines())}


def key_of(line: Line, case: Case) -> str:
    what = (VERSION, line.identity, line.steps, case.seed, case.start, case.script, REVISIT)
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def compare(lines: list[Line], sets: dict[str, list[Case]], out: Path) -> tuple[dict, dict]:
    """Play every line on every walk, leaving out what `out` has already.

    Models take turns on each walk, so that other work on the machine meets all of them alike.

    Returns:
        (records by set and (label, steps), strips of the first walk by set and label).
    """
    (out / "strips").mkdir(parents=True, exist_ok=True)
    path, run = out / "walks.jsonl", time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    known = read_records(path)
    shown: dict[str, Line] = {}
    for line in lines:
        shown.setdefault(line.label, line)
    records: dict[str, dict] = {name: {(line.label, line.steps): [] for line in lines} for name in sets}
    strips: dict[str, dict[str, np.ndarray]] = {name: {} for name in sets}
    size = next(line.model.size for line in lines if line.model is not None)
    with tqdm(total=sum(map(len, sets.values())) * len(lines), unit="walk") as bar:
        for name, cases in sets.items():
            for number, case in enumerate(cases):
                truths: tuple[Clip, Clip] | None = None
                for line in lines:
                    key = key_of(line, case)
                    picture = out / "strips" / f"{key}.png"
                    wants_strip = number == 0 and shown[line.label] is line and line.label not in CALIBRATION[1:]
                    bar.set_description(f"{name} {number + 1}: {line.label}" + (f", {_count(line.steps, 'step')}" if line.steps else ""))
                    if key not in known or (wants_strip and not picture.exists()):
                        truths = truths or tuple(render(case.seed, s, start=case.start, size=size) for s in (case.script, REVISIT))
                        record, video = play(line, case, *truths)
                        if wants_strip:
                            Image.fromarray(strip(video)).save(picture)
                        about = {"key": key, "label": line.label, "steps": line.steps, "model": line.identity, "run": run}
                        known[key] = about | asdict(case) | record
                        with path.open("a") as file:
                            file.write(json.dumps(known[key]) + "\n")
                    records[name][line.label, line.steps].append(known[key])
                    if wants_strip:
                        strips[name][line.label] = np.asarray(Image.open(picture))
                    bar.update()
    return records, strips


# -- what is written ---------------------------------------------------------------------------------------------------
def strip(video: np.ndarray) -> np.ndarray:
    """The frames at `COLUMNS`, side by side; white where the video is shorter."""
    at = [round(s * FPS) for s in COLUMNS]
    return np.concatenate([video[t] if t < len(video) else np.full_like(video[0], 255) for t in at], axis=1)


def sheet(strips: dict[str, dict[str, np.ndarray]], names: dict[str, str]) -> np.ndarray:
    """For each set its title and the seconds, then a strip a row with its label (or its entry in `names`) to the left."""
    margin, header = 190, 22
    rows = []
    for name, by_label in strips.items():
        width = next(iter(by_label.values())).shape[1]
        top = np.full((header, margin + width, 3), 255, dtype=np.uint8)
        _write(top, SETS.get(name, name), 4)
        for i, second in enumerate(COLUMNS):
            _write(top, f"{second} s", margin + i * width // len(COLUMNS) + 4)
        rows.append(top)
        for label, pictures in by_label.items():
            side = np.full((len(pictures), margin, 3), 255, dtype=np.uint8)
            _write(side, names.get(label, label)[:26], 4)
            rows.append(np.concatenate([side, pictures], axis=1))
    return np.concatenate(rows)


def _write(picture: np.ndarray, text: str, x: int) -> None:
    cv2.putText(picture, text, (x, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)


def markdown(results: dict) -> str:
    """The tables, one a set, and what the columns mean in a line each."""
    runs = sorted({run for rows in results["sets"].values() for row in rows for run in row.get("runs", ())})
    threads = sorted({n for rows in results["sets"].values() for row in rows for n in row.get("threads", ())})
    devices = sorted({d for rows in results["sets"].values() for row in rows for d in row.get("devices", ())})
    out = []
    for name, rows in results["sets"].items():
        psnrs = list(rows[0]["psnr"])
        heads = ["model", "steps", *(f"PSNR {m}" for m in psnrs), "revisit"]
        heads += ["action error, first 5 s", "no estimate", "action error, last 5 s", "no estimate"]
        heads += [*(f"sharpness {m}" for m in _ends(psnrs)), "frames/s"]
        out += [f"**{SETS.get(name, name)}** ({_count(rows[0]['walks'], 'walk')} of {results['seconds']:g} s)", ""]
        out += ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
        for row in rows:
            cells = [row["label"], _cell(row["steps"], "d")]
            cells += [_with_error(row["psnr"][m] if row["label"] != "truth" else None) for m in psnrs] + [_with_error(row.get("revisit"))]
            for span in ("first 5 s", "last 5 s"):
                error, missing = row["action error"][span], row["no estimate"][span]
                shown = _cell(error, ".1f")
                cells += [f"({shown})" if error is not None and missing > 0.5 else shown, _cell(missing, ".0%")]
            cells += [_cell(row["sharpness"][m], ".2f") for m in _ends(psnrs)] + [_cell(row.get("frames per second"), ".1f")]
            out.append("| " + " | ".join(cells) + " |")
        out.append("")
    out += [
        "PSNR in dB against rendered truth, over the second before the one named, ± the standard error over walks. Revisit: the same of "
        f"the last quarter second of `{results['revisit']}`. Action error: degrees a second between the rotation seen in the video and the "
        "one commanded, median over the quarter seconds that turn; no estimate: the share of those in which too little that can be seen "
        "could be tracked, and errors from fewer than half stand in brackets. Sharpness: gradient energy over the truth's.",
        "",
        f"Speed: {', '.join(devices)}, {' or '.join(map(str, threads))} threads of PyTorch, "
        + ("all in one run." if len(runs) == 1 else f"measured in {len(runs)} runs, so compare speeds with care."),
    ]
    return "\n".join(out) + "\n"


def _ends(names: list[str]) -> list[str]:
    return list(dict.fromkeys((names[0], names[-1])))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _with_error(value: list[float | None] | None) -> str:
    if value is None:
        return "–"
    return f"{value[0]:.2f}" + ("" if value[1] is None else f" ± {value[1]:.2f}")


def named_models(arguments: list[str]) -> dict[str, WorldModel]:
    """Models of ``label=folder`` arguments."""
    folders: dict[str, str] = {}
    for argument in arguments:
        label, equals, folder = (part.strip() for part in argument.partition("="))
        if not (label and equals and folder) or "|" in label or label in folders:
            raise CompareError(f"Write each model as label=FOLDER, with a label of its own, got {argument!r}.")
        folders[label] = folder
    return {label: WorldModel.from_pretrained(folder) for label, folder in folders.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m distill.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="label=FOLDER", help="a label and a model's folder, or the name of packaged weights")
    parser.add_argument("--steps", type=int, nargs="+", required=True, help="denoising steps; the first are those of the sheet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--walks", type=int, default=6, help="walks of each set (default: 6)")
    parser.add_argument("--seconds", type=float, default=len(parse_script(TOUR)) / FPS, help="cut the walk short, for a quick look")
    args = parser.parse_args(argv)
    if args.walks < 1 or min(args.steps) < 1 or args.seconds < 1:
        parser.error("--walks, --steps and --seconds are 1 or more.")
    tour = parse_script(TOUR)[: round(args.seconds * FPS)]
    script = TOUR if len(tour) == len(parse_script(TOUR)) else script_text(tour)
    try:
        lines = lines_of(named_models(args.models), args.steps)
    except (CompareError, ModelError) as error:
        parser.error(str(error))
    records, strips = compare(lines, {name: walks_of(name, args.walks, script) for name in SETS}, args.out)
    results = {"script": script, "seconds": len(tour) / FPS, "revisit": REVISIT}
    results["sets"] = {
        name: [summary(label, steps, rows, 1 + len(tour)) for (label, steps), rows in by_line.items()] for name, by_line in records.items()
    }
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "table.md").write_text(markdown(results))
    names = {line.label: f"{line.label}, {_count(args.steps[0], 'step')}" for line in lines if line.model is not None}
    Image.fromarray(sheet(strips, names)).save(args.out / "sheet.png")
    print(markdown(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
