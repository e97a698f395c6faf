"""Kills at system calls that change files: no embedding is damaged, at most one step is lost, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("cc"), reason="needs Linux and a C compiler")
def test_a_run_that_is_killed_anywhere_loses_one_step_at_most() -> None:
    program = Path(__file__).with_name("kill_training.py")
    done = subprocess.run([sys.executable, str(program), "500"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    figures = json.loads(done.stdout)
    assert figures["kills"] == min(500, figures["calls"])
    assert figures["lost_worst"] <= 1
