"""Render a data set of walks: ``python -m distill.scenes --out DIR --seeds 0-23 --clips 1000 --workers 2``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from distill.scenes.dataset import Settings, contact_sheet, missing, write_dataset


def parse_seeds(text: str) -> tuple[int, ...]:
    """``"0-3,8"`` -> (0, 1, 2, 3, 8)"""
    seeds: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdigit() or (dash and not high.isdigit()):
            raise argparse.ArgumentTypeError(f"seeds are numbers and ranges such as 0-23 or 1,5,9, got {text!r}")
        seeds.extend(range(int(low), int(high if dash else low) + 1))
    return tuple(dict.fromkeys(seeds))


def parse_speed(text: str) -> tuple[float, float]:
    low, _, high = text.partition("-")
    return float(low), float(high or low)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m distill.scenes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; a stopped run continues there")
    parser.add_argument("--seeds", type=parse_seeds, default=parse_seeds("0-23"), help="scenes, for example 0-23 or 0,4,8")
    parser.add_argument("--clips", type=int, default=0, help="how many clips in all; 0 with --sheet for a quick look")
    parser.add_argument("--frames", type=int, default=81, help="frames a clip, at 16 a second")
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels")
    parser.add_argument("--level", type=float, default=1.0, help="curriculum of actions, 0 (few, single keys) to 1 (all, mixed)")
    parser.add_argument("--speed", type=parse_speed, default=(1.0, 1.0), help="range of magnitudes, for example 0.7-1.2")
    parser.add_argument("--draw", type=int, default=0, help="another number gives other walks in the same scenes")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--sheet", action="store_true", help="also write sheet.png: eight start views of each of the first scenes")
    args = parser.parse_args(argv)
    try:
        settings = Settings(args.seeds, args.frames, args.size, args.level, args.speed, args.draw)
        if args.sheet:
            _write_sheet(args.out, args.seeds[:24], args.size)
        if args.clips:
            _write_clips(args.out, settings, args.clips, args.workers)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "Stopped. The same command continues.\n")
    return 0


def _write_sheet(folder: Path, seeds: tuple[int, ...], size: int) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(contact_sheet(seeds, size)).save(folder / "sheet.png")


def _write_clips(folder: Path, settings: Settings, clips: int, workers: int) -> None:
    from tqdm import tqdm

    done = clips - len(missing(folder, clips))
    with tqdm(total=clips, initial=done, unit="clip", smoothing=0.05) as bar:
        for _ in write_dataset(folder, settings, clips, workers):
            bar.update()


if __name__ == "__main__":
    sys.exit(main())
