"""A coverage-guided fuzzer over every reader of embedding files. Knows no layout; run by hand, with `pip install atheris`:

    mkdir work seeds; unzip -q tests/fuzz/corpus.zip -d seeds
    python tests/fuzz/fuzz_formats.py -max_total_time=600 -rss_limit_mb=2048 -timeout=20 -max_len=40000 work seeds tests/golden

What it finds goes to `work`; what of it is small is kept in `corpus.zip`, which `test_fuzz_corpus.py` reads at every test run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["textual_inversion.formats", "pickletools", "zipfile", "json"]):
    from tests.fuzz.target import read_everything


def main() -> None:
    """Run until the options' limit; a crash is any error but the package's own."""
    atheris.Setup(sys.argv, read_everything)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
