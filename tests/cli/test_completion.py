"""The scripts for completion: generated from the parser, and tried in the shells that are here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from textual_inversion.cli import build_parser, main
from textual_inversion.cli.completion import _fish_flag, completion_script
from textual_inversion.settings.generation import SAMPLERS

SHELLS = ("bash", "zsh", "fish")


def completed(script: str, *words: str) -> list[str]:
    """What bash offers for the last of `words`."""
    quoted = " ".join(f"'{word}'" for word in words)
    call = f'{script}\nCOMP_WORDS=({quoted}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); _textual_inversion; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "--norc", "-c", call], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [line for line in done.stdout.split("\n") if line]


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_bash_completes_commands_options_and_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = completion_script(build_parser(), "bash")
    program = "textual-inversion"
    assert completed(script, program, "tr") == ["train"]
    assert set(completed(script, program, "")) >= {"create", "install", "completion", "--version"}
    assert "--images" in completed(script, program, "train", "zorb", "--im")
    assert completed(script, program, "generate", "x", "--sampler", "DPM++ 2M SDE") == ["DPM++ 2M SDE", "DPM++ 2M SDE Karras"]
    assert completed(script, program, "completion", "z") == ["zsh"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my file.pt").touch()
    assert completed(script, program, "inspect", "my") == ["my file.pt"]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_option_is_in_every_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name in ("create", "preprocess", "train", "generate", "install", "serve"):
        assert name in script
    for flag in ("images", "learning-rate", "embeddings", "no-picture", "tls-cert"):
        assert (f"-l {flag} " if shell == "fish" else f"--{flag}") in script
    assert all(sampler.split(" ")[0] in script for sampler in SAMPLERS)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_can_read_its_script(shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell}")
    (tmp_path / "script").write_text(completion_script(build_parser(), shell))
    assert subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, check=False).stderr == b""


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["completion", "tcsh"])
    assert ended.value.code == 2


def test_fish_tells_three_kinds_of_flags() -> None:
    assert [_fish_flag(flag) for flag in ("--out", "-o", "-old")] == ["-l out", "-s o", "-o old"]
