"""How a setting is declared: once, on its dataclass field. Checks, command line, forms, API and docs read the declaration."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from numbers import Number
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from textual_inversion.errors import ConfigError

_WHOLE = re.compile(r"[+-]?[0-9]{1,400}")
_Settings = TypeVar("_Settings", bound="Settings")
AUTO = "auto"  # the word of settings that choose their value themselves
_LONGEST = 40  # letters of a refused number that its message shows


@dataclass(frozen=True)
class Setting:
    """One declared setting.

    Attributes:
        name: the dataclass field; filled in by `settings_of`.
        types: the types that a value may have: one of bool, int, float, str and tuple, or several; filled in likewise.
        default: the value when none is given; `MISSING` for a required setting.
        help: one sentence with the unit and the consequence, for the command line, the API and the docs, without its last full stop.
            `{range}` stands for the range, `{minimum}` and `{maximum}` for its ends. Other settings stand in backticks.
        label: what a form calls the setting, mostly A1111's words.
        hint: the form's short advice.
        group: heading on the command line and in the docs; forms choose a place by it.
        before: a setting of the same group that this one precedes there; otherwise the order of declaration holds.
        minimum, maximum: range of a number, both ends included.
        multiple: a whole number must be a multiple of this.
        zero: the meaning of 0, where 0 is allowed below the minimum.
        word: a word that is allowed in place of a number.
        step: step of the form's slider; by default `multiple`. Without either a form shows a number box.
        choices: the only values.
        aliases: other names of choices, in small letters and without spaces and underscores -> the choice.
        offered: values that a form offers beside free text.
        kind: the form's component, where the type and the range do not say it: text, lines, choice, open_choice.
        saved: whether a WebUI may save the form's value for its next start.
        folder: the value is a folder; people paste those with quotation marks, spaces and `~`.
        verbatim: spaces at both ends of the text are significant.
        option: name on the command line, where it is not the field's.
        metavar: what stands for the value in the command line's help.
        title: the setting's name in messages, where it is not the field's.
        rule: a further check of one value: returns what the value must be, or raises `ConfigError`. The default is exempt.
    """

    name: str = ""
    types: tuple[type, ...] = (str,)
    default: Any = field(default_factory=lambda: MISSING)
    help: str = ""
    label: str = ""
    hint: str = ""
    group: str = ""
    before: str = ""
    minimum: float | None = None
    maximum: float | None = None
    multiple: int = 1
    zero: str = ""
    word: str = ""
    step: float | None = None
    choices: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    offered: tuple[str, ...] = ()
    kind: str = ""
    saved: bool = True
    folder: bool = False
    verbatim: bool = False
    option: str = ""
    metavar: str = ""
    title: str = ""
    rule: Callable[[Any], str] | None = None

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is MISSING

    @property
    def type(self) -> type:
        """The first of the types: what a form and the command line turn a value into."""
        return self.types[0]

    @property
    def flag(self) -> str:
        """Name on the command line, such as `batch-size`."""
        return self.option or self.name.replace("_", "-")

    @property
    def lowest(self) -> float | None:
        """The lowest value that may be given: 0 or the minimum."""
        return 0 if self.zero else self.minimum

    @property
    def slider_step(self) -> float | None:
        """Step of the form's slider; None where a number box is better."""
        return self.step or (self.multiple if self.multiple > 1 else None)

    @property
    def range(self) -> str:
        """The range in words, such as `multiple of 8, 64 to 2048`; empty without one."""
        if self.minimum is None or self.maximum is None:
            return ""
        multiple = f"multiple of {self.multiple}, " if self.multiple > 1 else ""
        return f"{multiple}{_number(self.minimum)} to {_number(self.maximum)}"

    @property
    def described(self) -> str:
        """The help with its range filled in."""
        text = self.help.replace("{range}", self.range)
        return text.replace("{minimum}", _number(self.minimum or 0)).replace("{maximum}", _number(self.maximum or 0))

    def check(self, value: Any) -> None:
        """Refuse a value that the declaration does not allow.

        Raises:
            ConfigError: with the setting's name.
        """
        if problem := _problem(self, value):
            number = self.type in (int, float) and problem.startswith("from")
            shown = str(value)[:_LONGEST] if number else repr(value)
            raise ConfigError(f"{self.title or titled(self.name)} is {shown}; it must be {problem}.", setting=self.name)

    def meant(self, value: Any) -> Any:
        """The choice that another of its names stands for; every other value as it is."""
        if not self.aliases or not isinstance(value, str) or value in self.choices:
            return value
        return self.aliases.get(value.casefold().replace(" ", "").replace("_", ""), value)

    def nearest(self, value: float) -> Any:
        """The allowed number next to one that may lie outside the range; between two multiples the lower one."""
        number = max(self.minimum or 0, value if self.maximum is None else min(self.maximum, value))
        return int(number) // self.multiple * self.multiple if self.type is int else float(number)

    def clean(self, value: Any) -> Any:
        """A form's value in the type of this setting: gradio hands whole numbers over as floats and empty boxes as None.

        Raises:
            ConfigError: with the setting's name, for text that is no number.
        """
        if self.type is tuple:
            given = tuple(value or ())
            return tuple(choice for choice in self.choices if choice in given) if self.choices else given  # in declared order
        if self.type is bool:
            return bool(value)
        if self.type in (int, float):
            return self._clean_number(value)
        if self.folder:
            return folder_text(value)
        text = str(value if value is not None else "")
        return text if self.verbatim else text.strip()

    def _clean_number(self, value: Any) -> Any:
        other = f", or {self.word}" if self.word else ""
        if self.word and str(value).strip().lower() == self.word:
            return self.word
        try:
            number = float(value)
        except (TypeError, ValueError):
            shown = "empty" if value in (None, "") else repr(value)
            raise ConfigError(f"{self.label} is {shown}; it must be a number{other}.", setting=self.name) from None
        if self.type is float:
            return number
        if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
            return int(value)  # all its digits, which a float has not
        if not number.is_integer():
            raise ConfigError(f"{self.label} is {value!r}; it must be a whole number{other}.", setting=self.name)
        return int(number)


def setting(default: Any = MISSING, /, **declared: Any) -> Any:
    """A dataclass field with its declaration; the keywords are the attributes of `Setting`."""
    return field(default=default, metadata={"setting": Setting(default=default, **declared)})


class Settings:
    """Base of a frozen dataclass of settings: checked when it is made, and turned into a plain dict and back.

    `GROUPS` gives the order of the groups; groups that are missing in it come last.
    """

    GROUPS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Check each setting by its declaration, then all of them together.

        Raises:
            ConfigError: with the name of the first setting that cannot be used.
        """
        for declared in settings_of(type(self)):
            value = getattr(self, declared.name)
            if isinstance(value, Number) and hasattr(value, "item"):  # numpy's numbers, which JSON cannot hold, become Python's own
                object.__setattr__(self, declared.name, value := value.item())
            if (meant := declared.meant(value)) is not value:
                object.__setattr__(self, declared.name, value := meant)
            declared.check(value)
        self.check_together()

    def check_together(self) -> None:
        """Rules over several settings; raises `ConfigError`."""

    @classmethod
    def from_dict(cls: type[_Settings], values: Mapping[str, Any]) -> _Settings:
        """Build from a plain dict, as read from JSON; unknown and missing keys raise `ConfigError` by name."""
        declared = settings_of(cls)
        known = {each.name for each in declared}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"Unknown setting {unknown[0]!r}; the settings are {', '.join(sorted(known))}.", setting=unknown[0])
        if missing := [each.name for each in declared if each.required and each.name not in values]:
            needed = f"{' and '.join(missing)} must be given, all others have a default"
            raise ConfigError(f"The setting {missing[0]!r} is missing; {needed}.", setting=missing[0])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The settings as a plain dict that JSON can hold."""
        values = {each.name: getattr(self, each.name) for each in settings_of(type(self))}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def settings_of(settings: type[Settings]) -> tuple[Setting, ...]:
    """Every setting of a class, in the order of declaration."""
    whole: Any = settings  # mypy doubts that a class can be hashed
    return _declared(whole)


@cache
def _declared(settings: Any) -> tuple[Setting, ...]:
    types = get_type_hints(settings)
    return tuple(
        replace(each.metadata["setting"], name=each.name, types=_types(types[each.name]))
        for each in fields(settings)  # type: ignore[arg-type]  # every subclass is a dataclass
    )


def setting_of(settings: type[Settings], name: str) -> Setting:
    """One setting by its name."""
    return next(each for each in settings_of(settings) if each.name == name)


def grouped(settings: type[Settings]) -> dict[str, list[Setting]]:
    """Group -> its settings, both in the order of the command line and the docs; those of no group come first."""
    groups: dict[str, list[Setting]] = {group: [] for group in ("", *settings.GROUPS)}
    for each in settings_of(settings):
        groups.setdefault(each.group, []).append(each)
    for members in groups.values():
        for each in [member for member in members if member.before]:
            members.remove(each)
            members.insert(next(place for place, member in enumerate(members) if member.name == each.before), each)
    return {group: members for group, members in groups.items() if members}


def defaults_of(settings: type[Settings]) -> dict[str, Any]:
    """Name -> default; empty text for settings without one."""
    return {each.name: "" if each.required else each.default for each in settings_of(settings)}


def cleaned(settings: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a form's values that are settings, each in the type of its setting.

    Raises:
        ConfigError: with the name of the first setting that holds no number where one is needed.
    """
    return {each.name: each.clean(values[each.name]) for each in settings_of(settings) if each.name in values}


def titled(name: str) -> str:
    """A field's name as the beginning of a sentence: `batch_size` becomes `Batch size`."""
    return name.replace("_", " ").capitalize()


def folder_text(value: Any) -> str:
    """A folder as people paste it, without spaces or quotation marks around it, `~` resolved."""
    text = os.path.expanduser(re.sub(r"^([\"'])(.*)\1$", r"\2", str(value or "").strip()).strip())
    return os.path.abspath(text) if text.startswith("~") else text  # for an unknown user pathlib would raise; this path just does not exist


def colour(value: Any) -> str:
    """Rule of a colour such as `white`, `#808080` or `rgb(255, 0, 0)`."""
    from PIL import ImageColor  # imported here: a machine that only trains may lack Pillow, and the default needs no check

    try:
        ImageColor.getrgb(value)
    except ValueError:
        return "the name of a colour, or such as #ffffff"
    return ""


def _types(annotation: Any) -> tuple[type, ...]:
    """`str | float` -> (str, float), `tuple[str, ...]` -> (tuple,)."""
    if get_origin(annotation) is tuple:
        return (tuple,)
    return tuple(get_args(annotation)) or (annotation,)


def _number(value: float) -> str:
    """Written out, as in messages; the largest seed as people know it."""
    return "2**32 - 1" if value == 2**32 - 1 else str(value)


def _problem(setting: Setting, value: Any) -> str:
    """The requirement that `value` violates; empty when there is none."""
    if setting.type is bool:
        return "" if isinstance(value, bool) else "true or false"
    if setting.type is tuple:
        return _tuple_problem(setting, value)
    if setting.type in (int, float):
        return _number_problem(setting, value)
    if setting.choices:
        return "" if value in setting.choices else f"one of {', '.join(setting.choices)}"
    texts = (str, *((Path,) if setting.folder or setting.metavar == "FILE" else ()), *((int, float) if float in setting.types else ()))
    if not isinstance(value, texts) or isinstance(value, bool) or "\0" in str(value):
        return "a text"
    return setting.rule(value) if setting.rule and value != setting.default else ""


def _number_problem(setting: Setting, value: Any) -> str:
    if setting.word and value == setting.word:
        return ""
    low, high = setting.lowest, setting.maximum
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value  # not NaN
    if not number or not (low is None or low <= value) or not (high is None or value <= high):
        return f"from {low} to {high}" + (f", or {setting.word}" if setting.word else "")
    if setting.type is float:
        return ""
    if not isinstance(value, int):
        return "a whole number"
    if value % setting.multiple or (setting.zero and 0 < value < (setting.minimum or 0)):
        least = f", at least {setting.minimum}" if setting.minimum and setting.minimum > setting.multiple else ""
        return f"a multiple of {setting.multiple}{least}"
    return ""


def _tuple_problem(setting: Setting, value: Any) -> str:
    known = isinstance(value, tuple) and all(isinstance(item, str) and item in (setting.choices or (item,)) for item in value)
    if known and len(set(value)) == len(value):
        return ""
    return f"a tuple of {', '.join(setting.choices) or 'names'}, each once"
