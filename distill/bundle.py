"""A folder with which training runs on a borrowed machine that has torch and no network: ``python -m distill.bundle --out DIR``.

What lies in DIR::

    run.sh               sh DIR/run.sh distill.train tiny --out RUN --minutes 9
    worldmodel/ distill/ the source
    wheels/              packages that the machine lacks, for its version of Python (Linux, x86-64)
    prompts.safetensors  embeddings of the captions of the chosen scenes, so that no language model is needed there
    weights/             with --weights only: `--from DIR/weights` goes on from them

``run.sh`` installs the wheels into DIR/site at its first call (seconds, no network), and then runs a module with them. It starts
the Python of the variable PYTHON, else python3; WORLDMODEL_SITE is another place for the packages.

Say what the machine has: ``--python`` its version, ``--have`` its packages. torch must be there, and pip; everything else
that training imports and `--have` leaves out is downloaded, in the versions that are installed here. panda3d is slimmed
(`distill.slim`). PyAV is left out, as clips are kept as plain arrays without it; ``--also av`` takes it along (36 MB).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tqdm import tqdm

from distill.scenes import build_scene
from distill.scenes.__main__ import parse_seeds
from distill.slim import slim_wheel
from worldmodel.text import PromptCache, TextEncoder, TextError

ROOTS = ("diffusers", "matplotlib", "numpy", "omegaconf", "packaging", "panda3d", "pillow", "pyyaml", "safetensors", "tqdm")
"""What training imports, apart from torch; diffusers imports packaging and pyyaml without asking for them."""
HAVE = (
    "accelerate", "filelock", "huggingface-hub", "matplotlib", "numpy", "packaging", "pillow", "pyyaml", "regex", "requests",
    "safetensors", "torch", "tqdm", "transformers",
)  # fmt: skip
"""Packages that are taken to be on the machine; what they need is taken to be there too."""
REPO = Path(__file__).parents[1]
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "weights", "static")
RUN = """#!/bin/sh
# sh run.sh MODULE ARGUMENTS..., for example: sh run.sh distill.train tiny --out RUN --minutes 9
set -e
here=$(cd "$(dirname "$0")" && pwd)
site=${WORLDMODEL_SITE:-$here/site}
python=${PYTHON:-python3}
if [ ! -d "$site" ]; then
    rm -rf "$site.part"
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site.part" "$here"/wheels/*.whl
    mv "$site.part" "$site"
fi
export PYTHONPATH="$here:$site${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m "$@"
"""


class BundleError(RuntimeError):
    """The bundle cannot be made; the message says what to do."""


def missing_packages(have: Iterable[str], python: str = "3.12", roots: Iterable[str] = ROOTS) -> dict[str, str]:
    """Name -> version of the packages that `roots` need and `have` leaves out, as they are installed here.

    BundleError if one of them is not installed here.
    """
    target = {
        "python_version": python, "python_full_version": f"{python}.0", "implementation_name": "cpython", "os_name": "posix",
        "platform_python_implementation": "CPython", "platform_system": "Linux", "platform_machine": "x86_64", "sys_platform": "linux",
        "extra": "",
    }  # fmt: skip
    there = {canonicalize_name(name) for name in have}
    found: dict[str, str] = {}
    todo = list(roots)
    while todo:
        name = canonicalize_name(todo.pop())
        if name in there or name in found:
            continue
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError as error:
            raise BundleError(f"{name} is needed there and not installed here: pip install {name}, or add it to --have.") from error
        needs = [Requirement(line) for line in metadata.requires(name) or []]
        todo += [need.name for need in needs if need.marker is None or need.marker.evaluate(target)]
    return dict(sorted(found.items()))


def bundle_wheels(packages: dict[str, str], python: str, folder: Path) -> None:
    """Download wheels of `packages` (name -> version) for CPython `python` on Linux x86-64 into `folder`, panda3d slimmed.

    BundleError with pip's words if one does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    platforms = ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64", *(f"manylinux_2_{n}_x86_64" for n in range(5, 29))]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", python, *(x for p in platforms for x in ("--platform", p))]
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [*command, "--dest", scratch, *(f"{name}=={version}" for name, version in packages.items())],
            stdout=sys.stderr, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if done.returncode:
            raise BundleError(f"pip did not find all wheels for Python {python}: {done.stderr.strip()}")
        for wheel in sorted(Path(scratch).glob("*.whl")):
            if wheel.name.lower().startswith("panda3d-"):
                slim_wheel(wheel, folder)
            else:
                shutil.move(wheel, folder)


def bundle_prompts(seeds: Iterable[int], path: Path, encoder: TextEncoder | None = None) -> PromptCache:
    """Write the embeddings of the captions of the scenes with these seeds; the shipped ones are not computed again."""
    if encoder is None:
        shipped = REPO / "worldmodel" / "weights" / "tiny" / "prompts.safetensors"
        encoder = TextEncoder(cache=PromptCache.load(shipped) if shipped.exists() else None)
    captions = sorted({build_scene(seed).caption for seed in tqdm(list(seeds), desc="captions", unit="scene")})
    known, chosen = encoder.remember(captions), PromptCache(encoder.config)
    for caption in captions:
        chosen.add(caption, known.get(caption))
    chosen.save(path)
    return chosen


def copy_source(folder: Path) -> None:
    """The packages' code, without weights and pages, and the licence."""
    for package in ("worldmodel", "distill"):
        shutil.copytree(REPO / package, folder / package, ignore=NOT_SOURCE)
    if (REPO / "LICENSE").exists():
        shutil.copy(REPO / "LICENSE", folder)
    (folder / "run.sh").write_text(RUN)
    (folder / "run.sh").chmod(0o755)


def sizes(folder: Path) -> dict[str, float]:
    """Megabytes (10^6 bytes) of each part of a bundle; the wheels one by one."""
    out: dict[str, float] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        part = path.relative_to(folder).parts
        key = path.name if part[0] == "wheels" else part[0] + ("/" if len(part) > 1 else "")
        out[key] = out.get(key, 0.0) + path.stat().st_size / 1e6
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m distill.bundle", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make; it must not exist or be empty")
    parser.add_argument("--seeds", type=parse_seeds, default=parse_seeds("0-23"), help="scenes whose captions go along, for example 0-99")
    parser.add_argument("--python", default="3.12", help="the other machine's version of Python")
    parser.add_argument("--have", default=",".join(HAVE), help="packages that the other machine has (default: %(default)s)")
    parser.add_argument("--also", default="", help="more packages to take along, for example av")
    parser.add_argument("--weights", type=Path, help="a model's folder to take along for --from, for example worldmodel/weights/tiny")
    parser.add_argument("--limit", type=float, default=60.0, help="largest size in MB")
    args = parser.parse_args(argv)
    if args.out.exists() and any(args.out.iterdir()):
        parser.exit(2, f"{args.out} is not empty: give another folder, or remove it.\n")
    if args.weights and not (args.weights / "transformer").is_dir():
        parser.exit(2, f"{args.weights} is not a model's folder: it has no transformer/ in it.\n")
    try:
        also = [name for name in args.also.split(",") if name]
        packages = missing_packages([name for name in args.have.split(",") if name], args.python, [*ROOTS, *also])
        args.out.mkdir(parents=True, exist_ok=True)
        copy_source(args.out)
        if args.weights:
            shutil.copytree(args.weights, args.out / "weights", ignore=shutil.ignore_patterns("gallery"))
        bundle_prompts(args.seeds, args.out / "prompts.safetensors")
        bundle_wheels(packages, args.python, args.out / "wheels")
    except (BundleError, TextError, ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")
    table = sizes(args.out)
    total = sum(table.values())
    print("\n".join(f"{size:8.2f} MB  {name}" for name, size in [*table.items(), ("in all", total)]))
    if total > args.limit:
        parser.exit(1, f"That is more than --limit {args.limit:g} MB: fewer --seeds, no --weights or --also, or more in --have.\n")
    print(f"On the other machine: sh {args.out.name}/run.sh distill.train tiny --out RUN --minutes 9")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
