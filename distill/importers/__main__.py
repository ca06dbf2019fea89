"""Import posed video: ``python -m distill.importers FORMAT SOURCE --out DIR --size 128 --frames 81``.

A stopped run goes on with the same command. A recording that cannot be read is named and left out, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

from distill.dataset import paths, write_clip, write_index
from distill.importers.pictures import SourceError
from distill.importers.recording import Cut, Options, count_clips, make_clips

FORMATS = ("realestate10k", "sekai", "nerfstudio", "lingbot", "worldplay")


def parse_size(text: str) -> tuple[int, int]:
    """``"128"`` -> (128, 128), ``"480x832"`` -> (480, 832)"""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"a size is 128, or height x width as 480x832, got {text!r}")
    return int(match[1]), int(match[2] or match[1])


def read_captions(file: Path | None) -> dict[str, str]:
    """Captions by recording: a JSON object, or lines of name, tab, caption."""
    if file is None:
        return {}
    text = file.read_text()
    if file.suffix == ".json":
        found = json.loads(text)
        if not isinstance(found, dict):
            raise SourceError(f"{file}: captions are a JSON object of recording names and captions.")
        return found
    rows = [line.partition("\t") for line in text.splitlines() if line.strip()]
    if bad := [row[0] for row in rows if not row[1]]:
        raise SourceError(f"{file}: a line is a recording's name, a tab and its caption; there is no tab in {bad[0]!r}.")
    return {name: caption for name, _, caption in rows}


def run(name: str, source: Path, out: Path, cut: Cut, options: Options, captions: dict[str, str]) -> tuple[int, list[str]]:
    """Write the clips that are not there yet; the number of clips in `out` and what went wrong, one sentence a recording."""
    from tqdm import tqdm

    if not source.exists():
        raise SourceError(f"{source} does not exist.")
    found = importlib.import_module(f"distill.importers.{name}").entries(source, options)
    if not found:
        raise SourceError(f"{source}: there is nothing in the format {name} here.")
    out.mkdir(parents=True, exist_ok=True)
    _check_settings(out, cut)
    problems: list[str] = []
    try:
        with tqdm(found.items(), desc=name, unit="recording") as bar:
            for entry, load in bar:
                stem = out / re.sub(r"[^\w-]+", "_", entry)
                try:
                    recording = load()
                    count = count_clips(recording, cut)
                    done = {k for k in range(count) if all(p.exists() for p in paths(f"{stem}-{k:04d}"))}
                    caption = " ".join(captions.get(entry, recording.caption).split())
                    for number, clip in make_clips(recording, cut, frozenset(done)):
                        bar.set_postfix(clip=f"{number + 1}/{count}")
                        write_clip(f"{stem}-{number:04d}", replace(clip, caption=caption), source=name, recording=entry)
                except SourceError as error:
                    problems.append(str(error))
                    tqdm.write(str(error), file=sys.stderr)
    finally:
        total = write_index(out)
    return total, problems


def _check_settings(out: Path, cut: Cut) -> None:
    """Refuse to mix clips of different shapes in one folder."""
    file, mine = out / "settings.json", {"frames": cut.frames, "size": list(cut.size), "fps": cut.fps}
    if file.exists() and (there := json.loads(file.read_text())) != mine:
        raise SourceError(f"{out} was begun with other settings ({there}, now {mine}). Use the same settings or another folder.")
    file.write_text(json.dumps(mine) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m distill.importers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("source", type=Path, help="the format's file, or a folder of them")
    parser.add_argument("--out", type=Path, required=True, help="folder of clips to write to")
    parser.add_argument("--video", type=Path, help="the video, or the folder with the videos or pictures (default: beside the source)")
    parser.add_argument("--size", type=parse_size, default=(128, 128), help="pixels, for example 128 or 480x832")
    parser.add_argument("--frames", type=int, default=81, help="frames a clip; 1 + 4k, so that they make whole latent frames")
    parser.add_argument("--fps", type=float, default=16.0, help="frames a second of the clips")
    parser.add_argument("--source-fps", type=float, default=16.0, help="frames a second at which a folder of pictures is shown")
    parser.add_argument("--extrinsics", choices=("c2w", "w2c"), default="c2w", help="which way Sekai's extrinsic matrices go")
    parser.add_argument("--captions", type=Path, help="captions by recording: a JSON object, or lines of name, tab, caption")
    args = parser.parse_args(argv)
    if args.frames < 5 or args.frames % 4 != 1 or args.fps <= 0 or args.source_fps <= 0 or min(args.size) < 8:
        parser.error("--frames is 1 + 4k (5, 9, ... 81), --fps and --source-fps are positive, and --size is at least 8.")
    try:
        options = Options(args.video, args.source_fps, args.extrinsics)
        cut = Cut(args.size, args.frames, args.fps)
        total, problems = run(args.format, args.source, args.out, cut, options, read_captions(args.captions))
    except (ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\nStopped. The same command goes on.\n")
    left_out = f"; {len(problems)} recordings were left out" if problems else ""
    print(f"{args.out}: {total} clips{left_out}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
