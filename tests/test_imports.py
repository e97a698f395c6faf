"""The architecture, held: who imports whom, that importing has no effect, and what no module may call."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "textual_inversion"

_BASE = {"errors", "text", "files", "description", "other_files"}
_MODEL = _BASE | {"settings", "embedding", "formats", "prompts", "vocabulary", "diffusion"}
_WORK = _MODEL | {"last_run", "pictures", "library", "preprocess", "training"}
#: Layer -> the layers it may import besides itself. A new module or folder of the package gets its line here.
BELOW = {
    "errors": set(),
    "text": set(),
    "files": set(),
    "other_files": set(),
    "description": {"text"},
    "last_run": {"files"},
    "settings": {"errors"},
    "embedding": {"errors", "text", "description", "settings"},
    "formats": _BASE | {"embedding", "settings"},
    "prompts": _BASE | {"embedding", "formats", "settings"},
    "vocabulary": _BASE | {"embedding", "formats", "settings", "prompts"},
    "diffusion": _BASE | {"settings", "embedding", "formats", "prompts"},
    "pictures": _BASE | {"settings"},
    "library": _MODEL | {"last_run"},
    "audit": _MODEL | {"library"},
    "install": _MODEL | {"library"},
    "preprocess": _MODEL | {"pictures"},
    "training": _MODEL | {"last_run", "pictures"},
    "demo": _WORK,
    "__init__": _WORK | {"demo"},  # the public names
    "app": _WORK | {"audit", "install"},
    "ui": _WORK | {"app"},
    "hosts": _WORK | {"app"},  # adapters lend what app's port asks for
    "hosts.standalone": _WORK | {"app", "demo", "ui"},  # an adapter, and the program that composes it with the pages
    "hosts.webui": _WORK | {"app", "ui"},  # what the WebUIs share, and what is registered with them
    "hosts.a1111": _WORK | {"app", "hosts.webui"},
    "hosts.forge": _WORK | {"app", "hosts.webui"},
    "hosts.reforge": _WORK | {"app", "hosts.webui", "hosts.a1111"},
    "hosts.entry": _WORK | {"app", "ui", "hosts.webui", "hosts.a1111", "hosts.forge", "hosts.reforge"},  # which WebUI is this
    "cli": _WORK | {"audit", "install", "app", "demo", "__init__", "hosts.standalone"},
    "__main__": {"cli"},
}
#: Layers that are imported inside one program only: the standalone WebUI, or a WebUI that hosts us.
PROGRAMS = {"hosts.standalone", "hosts.webui", "hosts.a1111", "hosts.forge", "hosts.reforge"}
HOST_MODULES = {"modules", "backend", "modules_forge", "ldm_patched"}
IMPORTERS = {"importlib.import_module", "import_module", "__import__"}
FORBIDDEN_CALLS = {"torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "eval", "exec", "os.system"}

FILES = sorted((ROOT / PACKAGE).rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
MODULES = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES}
KNOWN = set(MODULES.values())


def layer_of(module: str) -> str:
    """Layer of a module by its dotted name."""
    parts = module.split(".")[1:]
    if not parts:
        return "__init__"
    inner = ".".join(parts[:2])
    return inner if inner in BELOW else parts[0]


def imported_modules(path: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import in `tree`, nested ones and `import_module("...")` included."""
    package = MODULES[path].split(".") if path.name == "__init__.py" else MODULES[path].split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield node.lineno, name if name in KNOWN else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in IMPORTERS and node.args and isinstance(node.args[0], ast.Constant):
            yield node.lineno, str(node.args[0].value)


IMPORTS = [
    (f"{path.relative_to(ROOT).as_posix()}:{line}", layer_of(MODULES[path]), name)
    for path, tree in TREES.items()
    for line, name in imported_modules(path, tree)
]


def test_every_module_belongs_to_a_layer() -> None:
    assert {layer_of(module) for module in KNOWN} <= set(BELOW)


def test_imports_point_down() -> None:
    wrong = [
        f"{where}: {layer} imports {name}"
        for where, layer, name in IMPORTS
        if name.split(".")[0] == PACKAGE and layer_of(name) not in BELOW[layer] | {layer}
    ]
    assert wrong == []


def test_layers_have_no_cycle() -> None:
    done: set[str] = set()
    while waiting := set(BELOW) - done:
        ready = {layer for layer in waiting if BELOW[layer] <= done}
        assert ready, f"these reach each other: {waiting}"
        done |= ready


def test_only_hosts_import_a_webuis_modules() -> None:
    wrong = [where for where, layer, name in IMPORTS if name.split(".")[0] in HOST_MODULES and not layer.startswith("hosts")]
    assert wrong == []


def test_only_pages_import_gradio() -> None:
    wrong = [where for where, layer, name in IMPORTS if name.split(".")[0] == "gradio" and layer not in {"ui", "hosts.standalone"}]
    assert wrong == []


@pytest.mark.parametrize(("source", "expected"), [
    ("from textual_inversion import cli", "textual_inversion.cli"),
    ("def f():\n    import gradio.blocks as b", "gradio.blocks"),
    ("from . import errors", "textual_inversion.errors"),
    ("from .formats import load", "textual_inversion.formats"),
    ("import importlib\nimportlib.import_module('modules.shared')", "modules.shared"),
])  # fmt: skip
def test_every_way_of_importing_is_seen(source: str, expected: str) -> None:
    if expected.startswith(PACKAGE) and expected not in KNOWN:
        pytest.skip(f"{expected} is not there")
    found = [name for _, name in imported_modules(ROOT / PACKAGE / "errors.py", ast.parse(source))]
    assert expected in found


def test_every_module_says_what_it_is_for() -> None:
    silent = [MODULES[path] for path, tree in TREES.items() if not ast.get_docstring(tree)]
    assert silent == []


def test_nothing_is_unpickled_or_evaluated() -> None:
    wrong = [
        f"{path.relative_to(ROOT).as_posix()}:{node.lineno}: {ast.unparse(node.func)}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in FORBIDDEN_CALLS
    ]
    assert wrong == []


# Runs in a process of its own: imports the modules it is given and reports what that changed.
PROBE = """
import importlib, json, logging, sys, threading
modules, host_modules = json.loads(sys.argv[1])
for name in modules:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in host_modules:
            raise
heavy = [name for name in ("gradio", "transformers", "diffusers") if name in sys.modules]
sys.stderr.write(json.dumps({"heavy": heavy, "handlers": len(logging.root.handlers), "threads": threading.active_count()}))
"""


def run_probe(modules: list[str], folder: Path) -> dict[str, object]:
    arguments = json.dumps([modules, sorted(HOST_MODULES)])
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{PROBE}"
    done = subprocess.run([sys.executable, "-c", code, arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return json.loads(done.stderr)  # more than the report on stderr does not parse, and fails


def test_importing_has_no_effect(tmp_path: Path) -> None:
    modules = [module for module in sorted(KNOWN) if layer_of(module) not in {"ui", *PROGRAMS, "__main__"}]
    assert run_probe(modules, tmp_path) == {"heavy": [], "handlers": 0, "threads": 1}
    assert list(tmp_path.iterdir()) == []


def test_importing_the_pages_prints_nothing(tmp_path: Path) -> None:
    modules = [module for module in sorted(KNOWN) if layer_of(module) in {"ui", "hosts.standalone"}]
    run_probe(modules, tmp_path)
    assert list(tmp_path.iterdir()) == []
