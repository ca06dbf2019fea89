"""The terminal's commands, run as a person would."""

import json
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
from PIL import Image
from small import picture, small_model

from worldmodel.cli import main
from worldmodel.model_settings import ModelSettings, load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("model")
    small_model().save_pretrained(out, dtype=torch.float32)
    Image.fromarray(picture()).save(out / "start.png")
    return out


def test_generate_writes_an_mp4_that_plays(folder, tmp_path, capsys):
    out = tmp_path / "clip.mp4"
    assert (
        main(
            [
                "generate",
                "--model",
                str(folder),
                "--image",
                str(folder / "start.png"),
                "--script",
                "w*6 left*5",
                "--scale",
                "2",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert "frames" in capsys.readouterr().out
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 16)
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert len(frames) == 1 + 12 and frames[0].shape == (128, 128, 3)  # the last chunk is filled up
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
    first = small_model().start(str(folder / "start.png")).first_frame.repeat(2, 0).repeat(2, 1)
    assert np.corrcoef(frames[0].ravel(), first.ravel())[0, 1] > 0.9  # lossy, but that picture


def test_help_is_light():
    code = (
        "import sys; from worldmodel.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print('heavy:', {'torch', 'diffusers', 'transformers', 'fastapi', 'av'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "generate" in done.stdout and done.stdout.endswith("heavy: set()\n")


def test_a_model_is_loaded_as_the_settings_say(folder):
    import diffusers
    import transformers

    bars = [library.utils.logging for library in (diffusers, transformers)]
    threads = torch.get_num_threads()
    try:
        own = load_model(ModelSettings(str(folder)))
        assert torch.get_num_threads() == threads and all(bar.is_progress_bar_enabled() for bar in bars)
        assert own.config == small_model().config
        other = load_model(ModelSettings(str(folder), memory="window", steps=3, threads=threads + 1), progress=False)
        assert torch.get_num_threads() == threads + 1 and not any(bar.is_progress_bar_enabled() for bar in bars)
        assert (other.config.memory, other.config.sampler.steps) == (own.config.memory.window_only(), 3)
        assert other.fingerprint == own.fingerprint, "the same weights"
    finally:
        torch.set_num_threads(threads)
        for bar in bars:
            bar.enable_progress_bar()
    with pytest.raises(ValueError, match="There is no memory 'lru'"):
        load_model(ModelSettings(str(folder), memory="lru"))


def test_bench_measures(folder, tmp_path, capsys):
    assert main(["bench", "--model", str(folder), "--history", "0", "3", "--chunks", "3", "--json", str(tmp_path / "b.json")]) == 0
    assert "| history s |" in capsys.readouterr().out
    report = json.loads((tmp_path / "b.json").read_text())
    fresh, later = report["rows"]
    assert fresh["fps"] > 0 and later["tokens"] >= fresh["tokens"] and fresh["key_to_frame_p95"] >= fresh["denoise"]


def test_another_memory_by_name(folder, tmp_path, capsys):
    tokens = {}
    for name in ("window", "relic", "full", "visible"):
        out = tmp_path / f"{name}.json"
        memory = [] if name == "relic" else ["--memory", name]
        assert main(["bench", "--model", str(folder), *memory, "--history", "3", "--chunks", "1", "--json", str(out)]) == 0
        tokens[name] = json.loads(out.read_text())["rows"][0]["tokens"]
    capsys.readouterr()
    assert tokens["window"] == 3 * 16 < tokens["visible"] <= tokens["full"] == 9 * 16 and tokens["window"] < tokens["relic"] < 9 * 16
    with pytest.raises(SystemExit):
        main(["bench", "--model", str(folder), "--memory", "lru"])
    assert "invalid choice: 'lru'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--image", "nowhere.png"], "There is no picture"),
        (["--image", "{folder}/config.txt"], "not a picture|cannot be|JPEG"),
        (["--image", "{folder}/start.png", "--script", "q*4"], "Unknown key 'q'"),
        (["--image", "{folder}/start.png", "--script", "w*x"], "keys\\*frames"),
        (["--model", "nothing", "--prompt", "a"], "There is no model 'nothing'"),
        ([], "Give --image or --prompt"),
    ],
)
def test_mistakes_get_one_clear_sentence(folder, tmp_path, capsys, arguments, says):
    import re

    (folder / "config.txt").write_text("no picture")
    model = [] if "--model" in arguments else ["--model", str(folder)]
    code = main(["generate", *model, *(a.format(folder=folder) for a in arguments), "--out", str(tmp_path / "x.mp4")])
    error = capsys.readouterr().err
    assert code == 2 and re.search(says, error) and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
