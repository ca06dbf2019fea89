"""setup_env.py's decisions, on fake environments: which PyTorch, what to say, what to keep after an interruption."""

import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """The script as a module whose `.venv` lies in a temporary folder."""
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "setup_env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    venv.mkdir()
    for name in ("STAMP", "LOG", "PYTHON", "BIN"):
        monkeypatch.setattr(module, name, str(venv / Path(getattr(module, name)).relative_to(module.VENV)))
    monkeypatch.setattr(module, "VENV", str(venv))
    return module


def test_pins_satisfy_the_ranges_and_cover_every_dependency(setup):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wants = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    pins = {name.replace("_", "-"): line.split("==")[1] for name, line in setup.read_pins().items()}
    for want in map(Requirement, wants):
        if want.name == "worldmodel":  # an extra that builds on another
            continue
        assert want.specifier.contains(pins[want.name.lower().replace("_", "-")]), want
    assert not any("torch" in line for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"])
    known = {extra for part in setup.EXTRAS.values() for extra in part} | {"serve", "text", "ray", "quant"}
    assert known == set(project["optional-dependencies"])


@pytest.mark.parametrize(
    ("gpu", "cuda", "wish", "expected"),
    [
        (False, False, None, "pip"),  # macOS, Windows, or a local CPU build
        (False, True, None, "cpu"),  # Linux without a GPU: not the index's CUDA build
        (True, True, None, "auto"),
        (True, False, None, "auto"),  # Windows: the index's build is for the CPU
        (False, True, "pip", "pip"),
        (True, True, "cu128", "cu128"),
    ],
)
def test_which_torch(setup, gpu, cuda, wish, expected):
    assert setup.choose_torch(gpu, cuda, wish) == expected


@pytest.mark.parametrize(
    ("requires", "answer"),
    [
        (["filelock", 'nvidia-cudnn-cu13==9.20.0.48; platform_system == "Linux"'], "True"),
        (['cuda-toolkit[cublas]==13.0.3; python_version > "3"'], "True"),
        (["filelock", 'nvidia-cudnn-cu13==9.20.0.48; platform_system == "Plan9"', 'nvidia-x; extra == "x"'], "False"),
        ([], "False"),
    ],
)
@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="pip reads the requirements")
def test_cuda_is_seen_in_the_requirements_that_apply_here(setup, requires, answer):
    if answer == "True" and sys.platform != "linux":
        pytest.skip("the lines are for Linux")
    report = json.dumps({"install": [{"metadata": {"requires_dist": requires}}]})
    said = subprocess.run([sys.executable, "-c", setup.CUDA_QUESTION], input=report, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == answer


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("Failed to establish a new connection: [Errno -3] Temporary failure in name resolution\nERROR: No matching distribution "
         "found for torch==2.13.0", "could not be reached"),
        ("ERROR: No matching distribution found for torch==2.13.0", "no build for this Python"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "PIP_CERT"),
        ("PermissionError: [Errno 13] Permission denied: 'x'", "could not be written"),
        ("first\nsomething odd", "something odd"),
    ],
)  # fmt: skip
def test_failures_are_explained(setup, output, told):
    assert told in setup.explain(output)


def test_a_failing_command_leaves_its_words_in_the_log(setup):
    with pytest.raises(setup.SetupError, match="disk is full"):
        setup.run_quietly([sys.executable, "-c", "print('No space left on device'); raise SystemExit(1)"], setup.Progress("Trying"))
    assert "No space left" in Path(setup.LOG).read_text()


def test_progress_outside_a_terminal_prints_milestones_only(setup, capsys):
    progress = setup.Progress("Libraries")
    for line in (
        "Collecting gradio<7,>=6.0 (from worldmodel==0.1.0)",
        "  Downloading gradio-6.31.0-py3-none-any.whl.metadata (15 kB)",
        "  Downloading gradio-6.31.0-py3-none-any.whl (31.4 MB)",
        "Progress 1000 of 2000",
        "  Downloading six-1.0-py3-none-any.whl (11 kB)",
        "Installing collected packages: a, b, c",
    ):
        progress.line(line)
    assert capsys.readouterr().out.splitlines() == ["Libraries", "  downloading gradio 6.31.0 (31.4 MB)", "  unpacking 3 package(s)"]


def test_ready_only_with_the_same_inputs_and_parts(setup, tmp_path, monkeypatch):
    pins = tmp_path / "constraints.txt"
    pins.write_text("torch==2.13.0  # tested\n\nUV==1\n")
    monkeypatch.setattr(setup, "INPUTS", [setup.INPUTS[0], str(pins)])
    assert setup.read_pins() == {"torch": "torch==2.13.0", "uv": "UV==1"}
    Path(setup.PYTHON).parent.mkdir()
    Path(setup.PYTHON).touch()
    assert not setup.is_ready("app")
    setup.write_stamp(parts=["app"], fingerprint=setup.fingerprint())
    assert setup.is_ready("app")
    assert not setup.is_ready("test")
    pins.write_text("torch==2.14.0\n")
    assert not setup.is_ready("app")
    Path(setup.STAMP).write_text("{half")
    assert not setup.is_ready("app")


def test_half_installed_packages_are_forgotten(setup):
    site = Path(setup.VENV) / ("Lib" if setup.WINDOWS else "lib/python3.11") / "site-packages"
    found = {"whole-1.dist-info": ("RECORD", "INSTALLER"), "cut-1.dist-info": ("RECORD",), "~old": (), "whole": ("a.py",)}
    for name, files in found.items():
        (site / name).mkdir(parents=True)
        for file in files:
            (site / name / file).touch()
    setup.drop_half_installed()
    assert sorted(path.name for path in site.iterdir()) == ["whole", "whole-1.dist-info"]


def test_a_folder_that_is_no_environment_is_left_alone(setup):
    (Path(setup.VENV) / "thesis.txt").touch()
    with pytest.raises(setup.SetupError, match="no virtual environment; move it away"):
        setup.ensure_venv()
    assert (Path(setup.VENV) / "thesis.txt").exists()


def test_without_any_way_to_make_an_environment_the_package_is_named(setup, monkeypatch):
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(setup.shutil, "which", lambda name, path=None: None)
    with pytest.raises(setup.SetupError, match="apt install python3-venv"):
        setup.make_venv()


def test_a_broken_environment_is_made_anew(setup, monkeypatch):
    """What is run for it is only recorded here; .ci/run goes through all of it."""
    commands = []
    monkeypatch.setattr(setup, "run_quietly", lambda command, progress: commands.append(command))
    Path(setup.VENV, "half").mkdir()
    Path(setup.VENV, "pyvenv.cfg").touch()
    setup.ensure_venv()
    assert commands == [[sys.executable, "-m", "venv", setup.VENV]]
    assert not any(Path(setup.VENV).iterdir())


@pytest.mark.parametrize("there", ["virtualenv", "pip"])
def test_other_ways_to_make_an_environment(setup, monkeypatch, there):
    commands = []
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: name in (there, "venv") or None)
    monkeypatch.setattr(setup.shutil, "which", lambda name, path=None: None)
    monkeypatch.setattr(setup, "run_quietly", lambda command, progress: commands.append(command[1:4]))
    setup.make_venv()
    ways = {"virtualenv": [["-m", "virtualenv", setup.VENV]], "pip": [["-m", "venv", "--without-pip"], ["-m", "pip", "--python"]]}
    assert commands == ways[there]


def test_old_pythons_are_told(setup, monkeypatch):
    monkeypatch.setattr(setup.sys, "version_info", (3, 9, 1))
    monkeypatch.setattr(setup.shutil, "which", lambda name, path=None: None)
    with pytest.raises(setup.SetupError, match=r"This is Python 3\.9; worldmodel needs 3\.11"):
        setup.main([])


def test_two_setups_take_turns(setup):
    """A second process gets the lock only when the first has let go."""
    code = (
        "import importlib.util, sys; s = importlib.util.spec_from_file_location('s', sys.argv[1]); m = importlib.util.module_from_spec(s);"
        "s.loader.exec_module(m); m.VENV = sys.argv[2]\nwith m.locked(): print('in', flush=True)"
    )
    with setup.locked():
        other = subprocess.Popen([sys.executable, "-c", code, str(ROOT / "setup_env.py"), setup.VENV], stdout=subprocess.PIPE, text=True)
        assert "waiting" in other.stdout.readline()
        assert other.poll() is None
    assert other.communicate(timeout=20)[0].strip() == "in"


def test_help_and_a_missing_command(setup, capsys):
    setup.main(["--help"])
    assert "setup_env.py test" in capsys.readouterr().out
    with pytest.raises(setup.SetupError, match="Which command"):
        setup.main(["--"])
