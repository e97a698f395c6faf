"""Writes docs/settings.md from the declarations: `python -m tools.settings_docs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from textual_inversion.settings.creation import NewEmbedding
from textual_inversion.settings.generation import GenerationSettings
from textual_inversion.settings.preprocessing import PreprocessConfig
from textual_inversion.settings.schema import Setting, Settings, grouped
from textual_inversion.settings.training import TrainingConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
CLASSES: tuple[tuple[str, type[Settings], str], ...] = (
    ("Creating an embedding", NewEmbedding, "`textual-inversion create`, the Create tab, `POST /create`."),
    ("Training", TrainingConfig, "`textual-inversion train`, the Train tab, `POST /train`, `TrainingConfig` in Python."),
    ("Preprocessing pictures", PreprocessConfig, "`textual-inversion preprocess`, the Preprocess tab."),
    ("Drawing", GenerationSettings, "`textual-inversion generate`, the txt2img page, `GenerationSettings` in Python."),
)
_HEAD = """# Settings

Every setting, by its name in Python and in the API. On the command line a setting is an option, such as `--batch-size` for `batch_size`;
the first column names it where it is called otherwise. This page is made from the declarations in `textual_inversion/settings/`:
`python -m tools.settings_docs` writes it anew.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(f"## {title}\n\n{where}\n\n{tables(settings)}\n" for title, settings, where in CLASSES)])


def tables(settings: type[Settings]) -> str:
    """One table for each group of a class."""
    text = ""
    for group, members in grouped(settings).items():
        text += f"### {group[0].upper()}{group[1:]}\n\n" if group else ""
        text += "| setting | on a page | default | range | what it does |\n|---|---|---|---|---|\n"
        text += "".join(f"| {' | '.join(_cells(each))} |\n" for each in members) + "\n"
    return text.rstrip()


def _cells(setting: Setting) -> tuple[str, ...]:
    option = f"<br>`--{setting.flag}`" if setting.option else ""
    default = "–" if setting.required else _shown(setting.default)
    choices = ", ".join(f"`{choice}`" for choice in setting.choices)
    limits = " or ".join(
        part for part in (setting.range or choices, "0" * bool(setting.zero), setting.word and f"`{setting.word}`") if part
    )
    cells = (f"`{setting.name}`{option}", setting.label, default, limits, f"{setting.described}.")
    return tuple(cell.replace("|", "\\|") for cell in cells)


def _shown(value: Any) -> str:
    """A default as a cell of the table."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value in ("", ()):
        return "none"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value!r}`" if str(value).strip() != str(value) else f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
