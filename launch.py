"""Start Textual Inversion from a fresh clone: make .venv beside this file, install into it, start. Standard library only.

Knows of the package only its command line and its requirement files. It parses on Python 3.6, so that an old Python gets a sentence
that says what is needed; that is why its annotations are quoted.
"""

import argparse
import collections
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
STAMP = os.path.join(VENV, "installed.json")
LOG = os.path.join(VENV, "install.log")

OLDEST_PYTHON = (3, 10)
OLDEST_MACOS = 14
DEFAULT_PORT = 7870
TORCH = "2.13.0"
#: PyTorch's own indexes, by build. PyPI has only CPU builds for Windows and only CUDA builds for Linux.
PYTORCH_INDEX = {"cpu": "https://download.pytorch.org/whl/cpu", "cuda": "https://download.pytorch.org/whl/cu130"}
# files side by side, each file in one process, because its tests share a server
ALL_TESTS = ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile"]
GIGABYTES = {"cpu": 3, "cuda": 10}  # what an installation takes, downloads included

DISK_ERRORS = ("no space left on device", "errno 28", "not enough space on the disk", "winerror 112", "disk quota exceeded")
NETWORK_ERRORS = (
    "newconnectionerror", "connecttimeouterror", "readtimeouterror", "nameresolutionerror", "max retries exceeded", "proxyerror",
    "connection refused", "connection reset", "connection broken", "temporary failure in name resolution", "getaddrinfo failed",
    "network is unreachable", "sslerror", "read timed out", "incompleteread",
)  # fmt: skip

EPILOG = """other commands:
  test [PYTEST ARGUMENTS]      install what the tests need and run them
  create | preprocess | train | generate | list | inspect | convert | scan | demo
                               passed on to the command line; COMMAND --help explains
  --version                    the versions of everything that takes part

environment:
  TORCH_INDEX_URL              package index to take PyTorch from, such as
                               https://download.pytorch.org/whl/cpu
"""


class LaunchError(Exception):
    """Something the user can act on; its message is one sentence."""


# What to do


def python_problem(version: "tuple[int, ...]", maxsize: int) -> "str | None":
    """The sentence that says why this Python cannot be used, or None."""
    if tuple(version[:2]) < OLDEST_PYTHON:
        found = ".".join(str(part) for part in version[:3])
        return f"Python {found} is too old; install Python 3.10 or newer from https://www.python.org/downloads/ and start with that one."
    if maxsize <= 2**32:
        return (
            "This Python is a 32-bit build, for which there is no PyTorch; install a 64-bit Python from https://www.python.org/downloads/."
        )
    return None


def mac_problem(system: str, machine: str, release: str) -> "str | None":
    """The sentence that says why PyTorch cannot be installed on this Mac, or None; `release` is macOS's, such as `14.5`."""
    if system != "Darwin":
        return None
    if machine == "x86_64":
        return f"PyTorch {TORCH} has no build for an Intel Mac; a Mac with Apple silicon and a Python made for it are needed."
    if release and int(release.split(".")[0]) < OLDEST_MACOS:
        return f"macOS {release} is too old for PyTorch {TORCH}; macOS {OLDEST_MACOS} or newer is needed."
    return None


def split_arguments(arguments: "list[str]") -> "tuple[str, list[str]]":
    """Command and what belongs to it: without a first word the command is `serve`; `--version` counts as one."""
    if arguments[:1] == ["--version"]:
        return arguments[0], list(arguments[1:])
    if not arguments or arguments[0].startswith("-"):
        return "serve", list(arguments)
    return arguments[0], list(arguments[1:])


def port_number(text: str) -> int:
    """`text` as a port from 1 to 65535, for argparse."""
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a number from 1 to 65535")
    return int(text)


def serve_arguments(arguments: "list[str]") -> "argparse.Namespace":
    """Options of the WebUI; what is not known here is left in `.rest` for the command line to judge."""
    parser = argparse.ArgumentParser(
        prog="launch.py",
        usage="launch.py [OPTIONS]  |  launch.py COMMAND [ARGUMENTS]",
        description="Start the Textual Inversion WebUI; the first start installs it into .venv.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--port", type=port_number, default=DEFAULT_PORT, help="port of the page (default: %(default)s)")
    parser.add_argument(
        "--listen",
        action="store_true",
        help="let other computers open the page, too (default: only this one), with the token that is printed with the address: they see "
        "pictures of any folder here and write where you may; --no-token leaves the token out, --tls-cert and --tls-key give https",
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")
    parser.add_argument("--checkpoint", metavar="PATH", help="Stable Diffusion checkpoint to start with (default: the tiny one that ships)")
    options, rest = parser.parse_known_args(arguments)
    options.rest = rest
    return options


def serve_command(options: "argparse.Namespace") -> "list[str]":
    """The command line's arguments that start the WebUI."""
    command = ["serve", "--port", str(options.port)]
    command += ["--listen"] if options.listen else []
    command += ["--no-browser"] if options.no_browser else []
    command += ["--checkpoint", options.checkpoint] if options.checkpoint else []
    return command + list(options.rest)


def port_error(host: str, port: int) -> "OSError | None":
    """Why a server could not listen on `port`, or None."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # on Windows this option would let two servers share the port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def check_port(host: str, port: int) -> None:
    """Raise `LaunchError` with the next free port if `port` cannot be had."""
    error = port_error(host, port)
    if error is None:
        return
    if error.errno == errno.EACCES and port < 1024:
        raise LaunchError(f"Port {port} needs administrator rights; choose one from 1024 on, such as --port {DEFAULT_PORT}.")
    free = [other for other in range(port + 1, min(port + 100, 65536)) if port_error(host, other) is None]
    advice = f"start with --port {free[0]}" if free else "start with another --port"
    raise LaunchError(f"Port {port} is in use, perhaps by this program in another window; {advice}.")


def nvidia_present(system: str) -> bool:
    """Whether an NVIDIA driver is installed; looks at files only, since this runs at every start."""
    if system == "Darwin":
        return False
    places = ["/proc/driver/nvidia/version", "/usr/lib/wsl/lib/nvidia-smi"]
    if system == "Windows":
        places = [os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvidia-smi.exe")]
    return shutil.which("nvidia-smi") is not None or any(os.path.exists(place) for place in places)


def torch_sources(system: str, nvidia: bool, index_url: "str | None", pip_configured: bool) -> "list[list[str]]":
    """Arguments of `pip install` that bring the right PyTorch, the first to be tried first.

    Args:
        system: `Linux`, `Darwin` or `Windows`.
        nvidia: a CUDA build is needed.
        index_url: the index that the user chose, the only one then.
        pip_configured: pip is told where packages come from (a mirror, a folder); that is respected.
    """
    plain = ["torch==" + TORCH]

    def index(url: str) -> "list[str]":
        # Only torch comes from there: those indexes lack the pinned versions of other packages.
        return ["--force-reinstall", "--no-deps", "--retries", "2", "--timeout", "20", "--index-url", url, *plain]

    if index_url:
        return [index(index_url)]
    if nvidia and system == "Windows":
        return [index(PYTORCH_INDEX["cuda"]), plain]
    if nvidia:
        # "===" takes PyPI's CUDA build and no "+cpu" build, which "==" would prefer.
        return [["torch===" + TORCH], index(PYTORCH_INDEX["cuda"])]
    if system == "Linux" and not pip_configured:
        return [index(PYTORCH_INDEX["cpu"]), plain]
    return [plain]


def required_packages(pyproject: str, extras: "list[str]") -> "list[str]":
    """Requirements that the text of pyproject.toml lists under `dependencies` and `extras`; tomllib came only with Python 3.11."""
    found = []  # type: list[str]
    for key in ["dependencies", *extras]:
        table = re.search(r"^" + re.escape(key) + r" = \[\n(.*?)^\]", pyproject, re.MULTILINE | re.DOTALL)
        if table is None:
            raise LaunchError(f"pyproject.toml lists no {key!r}; restore the file from the repository.")
        found += re.findall(r'"([^"]+)"', table.group(1))
    return found


def disk_problem(free_bytes: int, build: str) -> "str | None":
    """The sentence that says that the disk is too full for a `cpu` or `cuda` installation, or None."""
    free, needed = free_bytes / 1e9, GIGABYTES[build]
    if free >= needed:
        return None
    return f"The disk has {free:.1f} GB free, and the installation in {VENV} needs about {needed} GB; free some space and start again."


def explain_pip(errors: str) -> str:
    """One sentence for what pip wrote to stderr when it failed."""
    text = errors.lower()
    if any(sign in text for sign in DISK_ERRORS):
        return "The disk is full; free some space and start again, and the installation goes on where it stopped."
    if any(sign in text for sign in NETWORK_ERRORS):
        return "Packages cannot be downloaded; check the internet connection (or pip's proxy and index settings) and start again."
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1] if lines else "it gave no reason")
    return f"pip could not install the packages: {re.sub('^ERROR: *', '', last).rstrip('.')}; all it said is in {LOG}."


# The environment


def venv_python() -> str:
    """Path of the Python inside .venv."""
    return os.path.join(VENV, "Scripts", "python.exe") if os.name == "nt" else os.path.join(VENV, "bin", "python")


def clean_environment() -> "dict[str, str]":
    """This process's environment without what would lead Python or pip out of .venv."""
    unwanted = {"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "__PYVENV_LAUNCHER__", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"}
    environment = {key: value for key, value in os.environ.items() if key not in unwanted}
    environment.update(PYTHONNOUSERSITE="1", PIP_USER="0", PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    return environment


def requirements_key(nvidia: bool) -> str:
    """Changes whenever what is installed in .venv would have to change."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read().replace(b"\r\n", b"\n") + b"\0")
    digest.update(repr((TORCH, sys.version, nvidia, os.environ.get("TORCH_INDEX_URL"))).encode())
    return digest.hexdigest()


def is_ready(key: str, extras: "list[str]") -> bool:
    """Whether .venv holds a whole installation of `key` with `extras`."""
    try:
        with open(STAMP, encoding="utf-8") as file:
            stamp = json.load(file)
        return stamp["key"] == key and set(extras) <= set(stamp["extras"]) and os.path.exists(venv_python())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def say(text: str) -> None:
    """Tell the user something, on stderr: stdout belongs to the command."""
    print(text, file=sys.stderr, flush=True)


def ask_python(code: str) -> "tuple[int, str]":
    """Run `code` in .venv's Python; exit status and what it wrote, stdout and stderr together."""
    done = subprocess.run(
        [venv_python(), "-I", "-c", code],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, env=clean_environment(),
    )  # fmt: skip
    return done.returncode, done.stdout.strip()


def make_venv() -> None:
    """Make .venv, unless a working one for this Python is there (an interrupted installation goes on in it)."""
    if os.path.exists(venv_python()):
        status, version = ask_python("import pip, sys; print(sys.version)")
        if status == 0 and version == sys.version:
            return
    done = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", VENV],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, env=clean_environment(),
    )  # fmt: skip
    if done.returncode == 0:
        return
    if any(sign in done.stdout.lower() for sign in DISK_ERRORS):
        raise LaunchError(explain_pip(done.stdout))
    if "ensurepip" in done.stdout:
        package = "python{}.{}-venv".format(*sys.version_info[:2])
        raise LaunchError(f"This Python cannot make virtual environments; on Debian and Ubuntu `sudo apt install {package}` mends that.")
    lines = done.stdout.strip().splitlines() or ["no reason given"]
    raise LaunchError(f"The folder {VENV} cannot be made ({lines[-1]}); move this one to where you may write.")


def pip_install(arguments: "list[str]") -> None:
    """Run `pip install` in .venv under the pins of constraints.txt; raise `LaunchError` with one sentence when it fails."""
    scratch = os.path.join(VENV, "tmp")  # /tmp may be a small memory disk
    os.makedirs(scratch, exist_ok=True)
    command = [venv_python(), "-I", "-m", "pip", "install", "-c", os.path.join(ROOT, "constraints.txt"), *arguments]
    command += [] if sys.stderr.isatty() else ["--quiet"]
    tail = collections.deque(maxlen=400)  # type: collections.deque[str]
    with open(LOG, "a", encoding="utf-8") as log, subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=2, stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
        env=dict(clean_environment(), TMPDIR=scratch),
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            log.write(line)
            tail.append(line)
    shutil.rmtree(scratch, ignore_errors=True)
    if process.returncode:
        raise LaunchError(explain_pip("".join(tail)))


def drop_torn_packages(site_packages: str) -> None:
    """Remove the records of packages whose installation was cut off, so that pip installs them again."""
    for name in os.listdir(site_packages):
        folder = os.path.join(site_packages, name)
        if name.endswith(".dist-info") and not os.path.exists(os.path.join(folder, "RECORD")):
            shutil.rmtree(folder)


def installed_torch() -> "tuple[str, bool] | None":
    """Version and whether it is a CUDA build, without importing it; None where there is none."""
    code = (
        "import importlib.util, os, runpy; spec = importlib.util.find_spec('torch');"
        "found = runpy.run_path(os.path.join(os.path.dirname(spec.origin), 'version.py'));"
        "print(found['__version__'], found['cuda'] is not None)"
    )
    status, text = ask_python(code)
    words = text.split()
    return (words[0], words[1] == "True") if status == 0 and len(words) == 2 else None


def install_torch(nvidia: bool) -> None:
    """Install PyTorch from the first source that has the right build; raise `LaunchError` when none has."""
    index_url = os.environ.get("TORCH_INDEX_URL")

    def is_right() -> bool:
        found = installed_torch()
        return found is not None and found[0].split("+")[0] == TORCH and (found[1] or not nvidia or bool(index_url))

    if is_right() and not index_url:
        return
    config = subprocess.run(
        [venv_python(), "-I", "-m", "pip", "config", "list"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True, env=clean_environment(),
    )  # fmt: skip
    configured = re.search(r"index-url|find-links|no-index", config.stdout) is not None
    failure = LaunchError(
        f"This machine has an NVIDIA card, but the PyTorch {TORCH} that pip finds is built without CUDA; set TORCH_INDEX_URL to an index "
        f"that has a CUDA build, or to {PYTORCH_INDEX['cpu']} to go without the card."
    )
    for source in torch_sources(platform.system(), nvidia, index_url, configured):
        try:
            pip_install(source)
        except LaunchError as error:
            failure = error
            continue
        if is_right():
            return
    raise failure


def check_torch(nvidia: bool) -> None:
    """Import torch once, since a build that cannot load should be told at the installation."""
    status, text = ask_python("import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())")
    last = (text.splitlines() or ["no reason given"])[-1]
    if status:
        advice = "install Microsoft's Visual C++ Redistributable" if os.name == "nt" else "delete the folder .venv and start again"
        raise LaunchError(f"PyTorch was installed but does not load ({last.rstrip('.')}); {advice}.")
    if nvidia and last.endswith("False"):
        say(f"Note: PyTorch ({last}) cannot use the NVIDIA card now, perhaps because its driver is old; the processor will do the work.")


def install(key: str, nvidia: bool, extras: "list[str]") -> None:
    """Bring .venv to what `key` asks for; whatever an earlier, interrupted run installed is kept."""
    if not os.path.isdir(os.path.join(VENV, "lib")) and not os.path.isdir(os.path.join(VENV, "Lib")):
        problem = disk_problem(shutil.disk_usage(ROOT).free, "cuda" if nvidia else "cpu")
        if problem:
            raise LaunchError(problem)
    say(f"Installing into {VENV}; this takes a few minutes and is done once.")
    make_venv()
    if os.path.exists(STAMP):
        os.remove(STAMP)
    _, site_packages = ask_python("import sysconfig; print(sysconfig.get_path('purelib'))")
    drop_torn_packages(site_packages)
    install_torch(nvidia)
    with open(os.path.join(ROOT, "pyproject.toml"), encoding="utf-8") as file:
        packages = required_packages(file.read(), extras)
    index_url = os.environ.get("TORCH_INDEX_URL")
    pip_install((["--extra-index-url", index_url] if index_url else []) + packages)
    # A relative path, because the encoding of .pth files differs between systems.
    with open(os.path.join(site_packages, "textual_inversion_root.pth"), "w", encoding="ascii") as file:
        file.write(os.path.relpath(ROOT, site_packages) + "\n")
    check_torch(nvidia)
    with open(STAMP + ".new", "w", encoding="utf-8") as file:
        json.dump({"key": key, "extras": extras}, file)
    os.replace(STAMP + ".new", STAMP)


def ensure_environment(extras: "list[str]") -> None:
    """Install unless that is done; the check reads two small files and starts nothing."""
    nvidia = nvidia_present(platform.system())
    key = requirements_key(nvidia)
    if is_ready(key, extras):
        return
    try:
        install(key, nvidia, extras)
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", -1)):
            raise LaunchError(explain_pip("No space left on device")) from None
        raise LaunchError(f"The installation in {VENV} failed: {error}.") from None


def start(arguments: "list[str]") -> int:
    """Become .venv's Python with `arguments`, isolated from the user's site and PYTHON* variables; on Windows run it and wait."""
    command = [venv_python(), "-I", *arguments]
    if os.name == "posix":  # signals and exit statuses then need no help
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(command[0], command, clean_environment())
    process = subprocess.Popen(command, env=clean_environment())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child gets Ctrl-C too, and decides
    return process.wait()


def run(arguments: "list[str]") -> int:
    """Do what `arguments` ask; raises `LaunchError`."""
    problem = python_problem(sys.version_info[:3], sys.maxsize)
    problem = problem or mac_problem(platform.system(), platform.machine(), platform.mac_ver()[0])
    if problem:
        raise LaunchError(problem)
    command, rest = split_arguments(arguments)
    if command == "test":
        ensure_environment(["test"])
        os.chdir(ROOT)
        return start(["-m", "pytest", *(rest or ALL_TESTS)])
    if command == "serve":
        options = serve_arguments(rest)
        check_port("0.0.0.0" if options.listen else "127.0.0.1", options.port)
        rest = serve_command(options)
    else:
        rest = [command, *rest]
    ensure_environment([])
    return start(["-X", "utf8", "-m", "textual_inversion.cli", *rest])


def main(arguments: "list[str] | None" = None) -> int:
    """Entry point; returns the exit status: 1 with one sentence on stderr when the start fails, 130 after Ctrl-C."""
    try:
        return run(sys.argv[1:] if arguments is None else arguments)
    except LaunchError as error:
        say(f"Error: {error}")
        return 1
    except KeyboardInterrupt:
        say("Interrupted; the next start goes on from here.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
