"""The bundle: which packages go along, a slimmed Panda3D that draws the same pixels, embeddings without a language model."""

import base64
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

import distill.bundle as bundle
import distill.dataset as dataset
from distill.slim import BUILD, KEPT, slim_files, slim_wheel, unlink_libraries
from distill.train import embed_prompts
from worldmodel.text import PromptCache, TextConfig, TextEncoder, TextError

DRAW = """
import sys
import numpy as np
from distill.scenes.renderer import Renderer
from distill.scenes import build_scene
pose = np.array([[1.0, 0, 0, 3], [0, 0, 1, -20], [0, -1, 0, 2], [0, 0, 0, 1]])
renderer = Renderer(build_scene(3), (48, 64))
sys.stdout.buffer.write(renderer.frame(pose).tobytes() + renderer.depth(pose).tobytes())
sys.stderr.write(open("/proc/self/maps").read())
"""


def draw(*first: Path) -> tuple[np.ndarray, str]:
    """Bytes of one picture and its depth, and the libraries in use, from a fresh process that imports from `first`."""
    path = os.pathsep.join(map(str, [*first, bundle.REPO]))
    done = subprocess.run([sys.executable, "-c", DRAW], env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8), done.stderr.decode(errors="replace")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads the libraries in use from /proc")
def test_a_slimmed_panda3d_draws_the_same_pixels_without_x11_and_cg(tmp_path):
    pytest.importorskip("panda3d.core")
    installed = metadata.distribution("panda3d")
    files = [(str(f), installed.locate_file(f)) for f in installed.files if f.suffix != ".pyc"]
    size = 0
    for name, content in slim_files((n, p.read_bytes()) for n, p in files if KEPT.fullmatch(n)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
        size += len(content)
    assert size < 0.55 * sum(p.stat().st_size for _, p in files if p.is_file())
    expected, libraries = draw()
    assert len(expected) == 48 * 64 * (3 + 4) and len(np.unique(expected[: 48 * 64 * 3])) > 20
    pixels, slimmed = draw(tmp_path)
    assert np.array_equal(pixels, expected)
    assert "libCg.so" in libraries and "libCg.so" not in slimmed and "libX11" not in slimmed
    assert str(tmp_path) in slimmed


def test_unlinking_leaves_other_files_alone():
    with pytest.raises(ValueError, match="ELF"):
        unlink_libraries(b"MZ" + bytes(100))
    here = Path(torch._C.__file__).read_bytes()
    assert unlink_libraries(here, {"libnowhere.so": re.compile(b"X")}) == here


def test_a_slim_wheel_is_a_wheel(tmp_path):
    wheel, info = tmp_path / "panda3d-1.2.3-cp312-cp312-manylinux2014_x86_64.whl", "panda3d-1.2.3.dist-info"
    with zipfile.ZipFile(wheel, "w") as out:
        for name in ("panda3d/__init__.py", "panda3d/models/box.egg", "panda3d_tools/pview", f"{info}/METADATA", f"{info}/RECORD"):
            out.writestr(name, f"# {name}\n")
        out.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: cp312-cp312-manylinux2014_x86_64\n")
    (tmp_path / "slim").mkdir()
    slim = slim_wheel(wheel, tmp_path / "slim")
    assert slim.name == f"panda3d-1.2.3-{BUILD}-cp312-cp312-manylinux2014_x86_64.whl"
    with zipfile.ZipFile(slim) as file:
        rows = [line.split(",") for line in file.read(f"{info}/RECORD").decode().splitlines()]
        assert [r[0] for r in rows] == file.namelist() and "panda3d/models/box.egg" not in file.namelist()
        for name, digest, size in rows[:-1]:
            content = file.read(name)
            assert int(size) == len(content)
            assert digest == "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        assert rows[-1] == [f"{info}/RECORD", "", ""]
        assert f"Build: {BUILD}" in file.read(f"{info}/WHEEL").decode().splitlines()


def test_missing_packages_follow_what_is_needed(monkeypatch):
    needs = {"a": ["B_b>=1", 'old; python_version < "3.12"', 'more; extra == "all"'], "b-b": ["torch"], "c": None, "torch": ["huge"]}

    def version(name):
        if name not in needs:
            raise metadata.PackageNotFoundError(name)
        return f"{len(name)}.0"

    monkeypatch.setattr(bundle.metadata, "version", version)
    monkeypatch.setattr(bundle.metadata, "requires", lambda name: needs[name])
    assert bundle.missing_packages(["Torch"], "3.12", ["a", "c"]) == {"a": "1.0", "b-b": "3.0", "c": "1.0"}
    assert bundle.missing_packages(["torch", "b.b"], "3.12", ["a"]) == {"a": "1.0"}
    with pytest.raises(bundle.BundleError, match="pip install old"):
        bundle.missing_packages(["torch"], "3.11", ["a"])


def test_prompts_of_the_bundle_need_no_language_model(tmp_path, monkeypatch):
    encoder = TextEncoder(TextConfig(length=6, dim=4))
    monkeypatch.setattr(encoder, "_run", lambda text: torch.full((3, 4), float(len(text))))
    path = tmp_path / "prompts.safetensors"
    captions = bundle.bundle_prompts([2, 2, 5], path, encoder).prompts
    assert len(captions) == 2
    monkeypatch.setattr(TextEncoder, "_find_folder", lambda self: (_ for _ in ()).throw(TextError("no language model")))
    rows = embed_prompts(captions, path)
    assert rows.shape == (2, 6, 4) and rows[:, :3].unique().tolist() == sorted({float(len(c)) for c in captions}) and not rows[:, 3:].any()
    monkeypatch.setattr("distill.train.PROMPTS", path)  # as it lies in a bundle
    assert torch.equal(embed_prompts(captions), rows)
    with pytest.raises(TextError):
        embed_prompts(["somewhere else"])
    assert PromptCache.load(path).prompts == captions


def test_run_installs_once_and_starts_the_module(tmp_path):
    bundle.copy_source(tmp_path)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "x.whl").touch()
    python = tmp_path / "python"  # stands for Python: writes down how it is called, and makes pip's --target
    python.write_text('#!/bin/sh\necho "$PYTHONPATH|$*"\ncase "$*" in *"pip install"*) mkdir "$here/site.part";; esac\n')
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(python), "here": str(tmp_path)}
    calls = []
    for _ in range(2):
        command = ["sh", str(tmp_path / "run.sh"), "distill.train", "tiny", "a b"]
        calls += subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(calls) == 3 and "--no-index" in calls[0] and calls[0].endswith(f"{tmp_path}/wheels/x.whl")
    assert calls[1] == calls[2] == f"{tmp_path}:{tmp_path}/site|-m distill.train tiny a b"


def test_source_and_sizes(tmp_path):
    bundle.copy_source(tmp_path)
    assert (tmp_path / "distill" / "recipes" / "tiny.yaml").exists() and (tmp_path / "worldmodel" / "text.py").exists()
    assert not (tmp_path / "worldmodel" / "weights").exists()
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "x.whl").write_bytes(bytes(2_000_000))
    table = bundle.sizes(tmp_path)
    assert table["x.whl"] == pytest.approx(2.0) and 0.1 < table["distill/"] < 2 and sum(table.values()) < 5


def test_clips_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "VIDEO", ".npy")
    monkeypatch.setitem(sys.modules, "av", None)  # importing it fails
    frames = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    clip = dataset.Clip(frames, np.tile(np.eye(4, dtype=np.float32), (5, 1, 1)), np.ones(4, np.float32), np.zeros((5, 13), np.float32), "x")
    dataset.write_clip(tmp_path / "clip000001", clip)
    assert dataset.stems(tmp_path) == [tmp_path / "clip000001"] and dataset.write_index(tmp_path) == 1
    assert np.array_equal(dataset.read_clip(tmp_path / "clip000001").frames, frames)


def test_command_refuses_what_cannot_work(tmp_path, capsys):
    (tmp_path / "there").write_text("x")
    for arguments, message in (([], "not empty"), (["--weights", str(tmp_path)], "not a model's folder")):
        out = tmp_path if not arguments else tmp_path / "new"
        with pytest.raises(SystemExit) as stop:
            bundle.main(["--out", str(out), *arguments])
        assert stop.value.code == 2 and message in capsys.readouterr().err
