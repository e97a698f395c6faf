"""Run by a WebUI before it starts: says what this extension misses there. Installs nothing, changes nothing, always succeeds."""

import importlib.util
import sys

#: Module -> package that brings it; every supported WebUI has all of them.
NEEDED = {
    "PIL": "Pillow", "gradio": "gradio", "numpy": "numpy", "regex": "regex",
    "safetensors": "safetensors", "torch": "torch", "tqdm": "tqdm", "transformers": "transformers",
}  # fmt: skip


def missing_packages() -> "list[str]":
    """Names of the packages that this Python cannot import, sorted."""
    return sorted(package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None)


def main() -> None:
    """Print one line for each thing that is missing, nothing otherwise."""
    if sys.version_info < (3, 10):
        print("Textual Inversion needs Python 3.10 or newer; this WebUI runs Python {}.{}.".format(*sys.version_info[:2]))
    missing = missing_packages()
    if missing:
        print(f"Textual Inversion misses {', '.join(missing)}; install what this WebUI itself requires, then restart it.")


if __name__ == "__main__":
    main()
