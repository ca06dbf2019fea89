"""``worldmodel serve | generate | bench | eval | export | check``: the terminal's way in."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from worldmodel.configs import MEMORY_NAMES
from worldmodel.model_settings import DEPTH_HELP, ModelSettings, load_model
from worldmodel.runtime import RuntimeConfig, add_arguments, from_arguments

if TYPE_CHECKING:
    from worldmodel.model import WorldModel


def main(argv: list[str] | None = None) -> int:
    about = "An interactive video world model. The page with all its controls is started by app.py."
    parser = argparse.ArgumentParser(prog="worldmodel", description=about)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_serve(commands.add_parser("serve", help="let people walk, as a config file says"))
    _add_generate(commands.add_parser("generate", help="walk through a world by a script of keys and write an mp4"))
    _add_bench(commands.add_parser("bench", help="measure speed and memory here"))
    _add_eval(commands.add_parser("eval", help="measure quality against rendered truth: table, plots and picture sheets"))
    _add_export(commands.add_parser("export", help="write a folder for the hub that plain diffusers opens, or start a student from Wan"))
    _add_check(commands.add_parser("check", help="put a server of this machine under load, faults, or hours of coming and going"))
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"worldmodel: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("worldmodel: stopped.", file=sys.stderr)
        return 130


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny", help="packaged model, folder or hub id (default: tiny)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--memory", choices=MEMORY_NAMES, help="what becomes of what leaves the window (default: the model's own memory)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: CUDA when there is one)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--depth", metavar="MODEL", help=DEPTH_HELP)
    add_arguments(parser)


def _load(args: argparse.Namespace) -> WorldModel:
    return load_model(ModelSettings(args.model, args.memory, args.steps, args.device, args.threads, args.depth), from_arguments(args))


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="TOML file; worldmodel/server/config.py says what may be in it")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=int, help="port to listen on (default: 7860)")
    parser.add_argument("--model", help="packaged model, folder or hub id (default: tiny)")
    parser.add_argument("--depth", metavar="MODEL", help=DEPTH_HELP)
    parser.add_argument("--worlds", type=int, metavar="N", help="visitors who walk at once (default: 1)")
    parser.add_argument("--save-worlds", type=Path, metavar="FOLDER", help="keep worlds here, so that visitors go on after a restart")
    parser.add_argument(
        "--replicas", type=int, default=1, metavar="N", help="so many servers behind one address, each with its own model and --worlds "
        "places, and sharing the cores; Ray Serve starts them again when they die (extra [ray]; docs/reliability.md)",
    )  # fmt: skip
    add_arguments(parser)
    parser.set_defaults(run=_serve)


def _serve(args: argparse.Namespace) -> int:
    from worldmodel.autosave import AutosaveConfig
    from worldmodel.server.config import ServeConfig
    from worldmodel.server.serve import serve

    config = ServeConfig() if args.config is None else ServeConfig.read(args.config)
    given = {name: value for name in ("host", "port") if (value := getattr(args, name)) is not None}
    server = {} if args.worlds is None else {"worlds": args.worlds}
    if args.save_worlds is not None:
        server["autosave"] = AutosaveConfig(args.save_worlds)
    model = {} if args.model is None else {"name": args.model}
    config = replace(config, listen=replace(config.listen, **given), server=replace(config.server, **server))
    config = replace(config, model=replace(config.model, **model))
    if (runtime := from_arguments(args)) != RuntimeConfig():
        config = replace(config, runtime=runtime)
    if args.replicas < 1:
        raise ValueError("--replicas is 1 or more.")
    if args.replicas == 1:
        serve(config)
        return 0
    try:
        from worldmodel.server.ray_app import serve_replicas
    except ImportError as error:
        raise ValueError(f"--replicas needs {error.name}: install worldmodel[serve,ray].") from error
    serve_replicas(config, args.replicas)
    return 0


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("load", "faults", "soak"))
    parser.add_argument("--model", default="tiny", help="packaged model, folder or hub id (default: tiny)")
    parser.add_argument("--short", action="store_true", help="a fraction of it, to see that everything works")
    parser.add_argument("--out", type=Path, help="also write the table here (Markdown)")
    parser.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    from worldmodel.trials import check

    report = check(args.what, args.model, args.short)
    print(report.markdown())
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(report.markdown() + "\n", encoding="utf-8")
    return 0 if report.passed else 1


def _add_generate(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--image", help="start picture; a gallery world's name also does; default: made from the prompt")
    parser.add_argument("--prompt", help="one sentence about the place (default: the gallery world's own)")
    parser.add_argument("--script", default="w*32 left*32 w+right*32", help="terms keys*frames, for example 'w*16 w+left*8 .*4'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--window-only", dest="memory", action="store_const", const="window", help="the same as --memory window")
    parser.add_argument("--scale", type=int, default=4, help="repeat pixels in the mp4 (default: 4)")
    parser.add_argument("--out", type=Path, required=True, help="mp4 to write")
    parser.set_defaults(run=_generate)


def _generate(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from worldmodel.actions import parse_script
    from worldmodel.video import write_mp4

    actions = parse_script(args.script)
    model = _load(args)
    gallery = {g.name: g for g in model.gallery}
    place = gallery.get(args.image)
    prompt = args.prompt if args.prompt is not None else (place.prompt if place else "")
    if args.image is None and not prompt:
        names = ", ".join(gallery)
        raise ValueError(f"Give --image or --prompt. Gallery worlds that --image understands: {names or 'none'}.")
    image = place.image_path if place else args.image
    found = None if image is None else model.familiarity(image)
    if found is not None and found.notice:
        print(f"worldmodel: {found.notice}", file=sys.stderr)
    world = model.start(image, prompt, args.seed)

    def frames():
        yield world.first_frame
        with tqdm(total=len(actions), unit="frame", desc="generate") as bar:
            for chunk in world.stream(actions, ahead=model.runtime.overlap):
                yield from chunk.frames
                bar.update(min(len(chunk.frames), bar.total - bar.n))

    count = write_mp4(args.out, frames(), model.fps, args.scale)
    print(f"{args.out}: {count} frames, {count / model.fps:.1f} s")
    return 0


def _add_bench(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--history", type=float, nargs="*", help="seconds of history to measure at (default: 0 20 300; of Wan 0 5 20 300)")
    parser.add_argument("--config", choices=("wan-1.3b", "wan-14b"), help="measure a model of this shape instead of --model")
    parser.add_argument("--random-weights", action="store_true", help="with --config: drawn here, for they cost what trained ones cost")
    parser.add_argument("--scale", type=float, default=1.0, help="with --config: width, depth and both sides of the picture by so much")
    parser.add_argument("--side-by-side", action="store_true", help="with --config: this engine against a plain loop, at 5, 20 and 60 s")
    parser.add_argument("--chunks", type=int, default=24, help="chunks measured per row")
    parser.add_argument("--worlds", type=int, nargs="+", help="measure so many worlds stepped together instead, against in turn: 1 2 4 8")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.set_defaults(run=_bench)


def _bench(args: argparse.Namespace) -> int:
    import torch

    from worldmodel.bench import measure, measure_together, report, table, together_table

    if args.worlds and min(args.worlds) < 1:
        raise ValueError("--worlds are numbers of 1 or more.")
    if args.config:
        return _bench_wan(args)
    if args.random_weights or args.side_by_side or args.scale != 1:
        raise ValueError("--random-weights, --side-by-side and --scale go with --config.")
    args.history = args.history or [0.0, 20.0, 300.0]
    model = _load(args)

    def progress(text: str) -> None:
        print(text, file=sys.stderr)

    if args.worlds:
        rows = measure_together(model, args.worlds, max(args.history), args.chunks, progress=progress)
        text = together_table(rows)
    else:
        rows = [measure(model, s, args.chunks, progress=progress) for s in args.history]
        text = table(rows)
    print(
        f"{model.fingerprint}, {model.size[0]}x{model.size[1]}, {model.config.sampler.steps} steps, {model.device}, "
        f"{torch.get_num_threads()} threads"
    )
    print(text)
    if args.json:
        args.json.write_text(json.dumps(report(model, rows), indent=1) + "\n")
    return 0


def _bench_wan(args: argparse.Namespace) -> int:
    import torch

    from worldmodel import bench_wan

    if not args.random_weights:
        raise ValueError("--config measures a shape without weights: add --random-weights; for weights on disk use --model.")
    if args.worlds:
        raise ValueError("--worlds goes with --model.")
    if args.threads:
        torch.set_num_threads(args.threads)
    model = bench_wan.random_model(args.config, args.scale, args.device, from_arguments(args), args.memory)
    if args.steps:
        model = model.with_steps(args.steps)
    print(bench_wan.describe(model))

    def progress(text: str) -> None:
        print(text, file=sys.stderr)

    if args.side_by_side:
        results = bench_wan.side_by_side(model, args.history or [5.0, 20.0, 60.0], args.chunks, progress)
        print(bench_wan.side_by_side_table(results))
    else:
        results = bench_wan.measure(model, args.history or [0.0, 5.0, 20.0, 300.0], args.chunks, progress)
        print(bench_wan.table(results))
    if args.json:
        args.json.write_text(json.dumps(bench_wan.report(model, results), indent=1) + "\n")
    return 0


def _add_eval(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--suite", choices=("quick", "full", "long"), default="quick", help="walks of 5 to 6 s, 20 to 21 s, or 5 min")
    parser.add_argument("--walks", type=int, default=8, help="unseen worlds in which every script is walked (default: 8)")
    parser.add_argument("--adapter", help="module:function that makes another model from --model (docs/evaluation.md)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; the same one goes on where it stopped")
    parser.add_argument("--memories", nargs="+", metavar="NAME", help="compare memories instead: all, or names (docs/evaluation.md)")
    parser.add_argument("--minutes", type=int, help="with --memories: stream so long with each instead, and come back")
    parser.add_argument("--jobs", type=int, default=1, help="processes that --memories shares the threads among (default: 1)")
    parser.add_argument("--vbench", type=Path, metavar="FOLDER", help="also write the model's videos there, named for VBench")
    parser.set_defaults(run=_eval)


def _eval(args: argparse.Namespace) -> int:
    if args.walks < 1:
        raise ValueError("--walks is 1 or more.")
    try:
        from distill.suite import check_installed, evaluate, load_adapter
    except ImportError as error:
        raise ValueError(f"worldmodel eval needs {error.name}: install worldmodel[train,eval].") from error
    check_installed()
    if args.memories:
        return _eval_memories(args)
    model = load_adapter(args.adapter, args.model) if args.adapter else _load(args)
    evaluate(model, args.model, args.suite, args.walks, args.out, args.vbench)
    print((args.out / "table.md").read_text())
    return 0


def _eval_memories(args: argparse.Namespace) -> int:
    from distill import suite_memories, suite_stream

    if args.adapter or args.vbench or args.memory:
        raise ValueError("--memories compares memories of one packaged model or folder: leave out --adapter, --vbench and --memory.")
    if args.jobs < 1 or (args.minutes is not None and args.minutes < 1):
        raise ValueError("--jobs and --minutes are 1 or more.")
    named = [name for word in args.memories for name in (MEMORY_NAMES if word == "all" else (word,))]
    memories = list(dict.fromkeys(named))
    if args.minutes is not None:
        suite_stream.evaluate(_load(args), args.model, memories, args.minutes, args.out)
    else:
        suite_memories.evaluate(_load(args), args.model, memories, args.walks, args.jobs, args.out)
    print((args.out / ("table.md" if args.minutes is None else "stream.md")).read_text())
    return 0


def _add_export(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", default="tiny", help="packaged model, folder or hub id (default: tiny)")
    source.add_argument(
        "--wan", metavar="CHECKPOINT", help="a Wan 2.1 text-to-video checkpoint instead: folder, file or hub id (docs/wan.md)"
    )
    parser.add_argument("--parts", metavar="FOLDER", help="with --wan: where autoencoder and text encoder are")
    parser.add_argument("--lora", action="append", default=[], metavar="FILE[:STRENGTH]", help="with --wan: merged into the weights")
    parser.add_argument("--tiny-decoder", metavar="FILE", help="with --wan: taew2_1, which decodes instead of Wan's autoencoder")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="with --wan: pixels (default: 480 832)")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="bfloat16", help="of the weights (default: bfloat16)"
    )
    parser.add_argument("--out", type=Path, required=True, help="new folder to write")
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    import torch

    from worldmodel.export import export
    from worldmodel.lora import Lora
    from worldmodel.model import WorldModel

    dtype = getattr(torch, args.dtype)
    if args.wan:
        size = {"size": tuple(args.size)} if args.size else {}
        model = WorldModel.from_wan(
            args.wan, parts=args.parts, loras=[Lora.parse(text) for text in args.lora], tiny_decoder=args.tiny_decoder, device="cpu",
            dtype=dtype, **size,
        )  # fmt: skip
    elif args.parts or args.lora or args.tiny_decoder or args.size:
        raise ValueError("--parts, --lora, --tiny-decoder and --size go with --wan.")
    else:
        model = WorldModel.from_pretrained(args.model, device="cpu", dtype=dtype)
    export(model, args.out)
    total = sum(f.stat().st_size for f in args.out.rglob("*.safetensors"))
    print(f"{args.out}: {total / 1e6:,.1f} MB of weights. Open it with DiffusionPipeline.from_pretrained(..., trust_remote_code=True).")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
