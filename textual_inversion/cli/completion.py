"""The command `completion`: prints a script by which a shell completes commands, options and their values."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from textual_inversion.cli.common import Result, command

PROGRAM = "textual-inversion"
_MOST_HELP = 70  # letters
_HOW = {
    "bash": 'eval "$(textual-inversion completion bash)" in ~/.bashrc',
    "zsh": "textual-inversion completion zsh > a folder of $fpath/_textual-inversion",
    "fish": "textual-inversion completion fish > ~/.config/fish/completions/textual-inversion.fish",
}


@dataclass(frozen=True)
class _Option:
    """An option of a command.

    Attributes:
        flags: such as `--out`.
        help: the beginning of its help.
        takes_value: whether a value follows.
        choices: the values that it takes; empty = any.
    """

    flags: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...]


@dataclass(frozen=True)
class _Command:
    """A command, its help and its options; `choices` are those of its first argument."""

    name: str
    help: str
    options: tuple[_Option, ...]
    choices: tuple[str, ...] = ()

    @property
    def flags(self) -> list[str]:
        """The flags of all options."""
        return [flag for option in self.options for flag in option.flags]


def add_completion(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "completion", _completion, "print a script by which a shell completes commands and options")
    parser.add_argument("shell", choices=tuple(_HOW), help="the shell")
    parser.epilog = "Use it as: " + "; ".join(_HOW.values()).replace("%", "%%") + "."


def _completion(options: argparse.Namespace) -> Result:
    from textual_inversion.cli import build_parser

    script = completion_script(build_parser(), options.shell)
    if not options.json:
        print(script, end="")
    return {"shell": options.shell, "script": script}


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for `bash`, `zsh` or `fish` that completes what `parser` takes."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](_commands(parser))


def _commands(parser: argparse.ArgumentParser) -> list[_Command]:
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    helps = {action.dest: action.help or "" for action in subparsers._choices_actions}
    return [_command(name, helps.get(name, ""), each) for name, each in subparsers.choices.items()]


def _command(name: str, text: str, parser: argparse.ArgumentParser) -> _Command:
    options = tuple(_option(action) for action in parser._actions if action.option_strings and action.help != argparse.SUPPRESS)
    first = next((action for action in parser._actions if not action.option_strings), None)
    return _Command(name, _short(text), options, _choices(first) if first else ())


def _option(action: argparse.Action) -> _Option:
    return _Option(tuple(action.option_strings), _short(action.help or ""), action.nargs != 0, _choices(action))


def _choices(action: argparse.Action) -> tuple[str, ...]:
    if values := action.choices or getattr(action, "known_values", ()):
        return tuple(map(str, values))
    shown = action.metavar if isinstance(action.metavar, str) else ""
    return tuple(shown[1:-1].split(",")) if shown.startswith("{") and shown.endswith("}") else ()


def _short(text: str) -> str:
    """The beginning of a help on one line."""
    line = " ".join(text.replace("%%", "%").split("; default:")[0].split())
    return line if len(line) <= _MOST_HELP else f"{line[:_MOST_HELP].rsplit(' ', 1)[0]} …"


def _quoted(text: str) -> str:
    """A word in single quotes, as bash and zsh read it."""
    return "'" + text.replace("'", "'\\''") + "'"


def _lines(words: list[str]) -> str:
    return _quoted("\n".join(words))


def _bash(commands: list[_Command]) -> str:
    options = "".join(f"    {each.name}) options={_lines(each.flags)} values={_lines(list(each.choices))} ;;\n" for each in commands)
    values = "".join(
        f"    {' | '.join(_quoted(f'{each.name} {flag}') for flag in option.flags)}) values={_lines(list(option.choices))} chosen=1 ;;\n"
        for each in commands
        for option in each.options
        if option.choices
    )
    return f"""# Completion of {PROGRAM} for bash.
_textual_inversion() {{
  local IFS=$'\\n' word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} options='' values='' chosen=''
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W {_lines([each.name for each in commands] + ["--help", "--version"])} -- "$word"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{options}  esac
  case "${{COMP_WORDS[1]}} $before" in
{values}  esac
  if [ -n "$chosen" ]; then
    COMPREPLY=($(compgen -W "$values" -- "$word"))
  elif [ "${{word:0:1}}" = - ]; then
    COMPREPLY=($(compgen -W "$options" -- "$word"))
  elif [ "$COMP_CWORD" -eq 2 ] && [ -n "$values" ]; then
    COMPREPLY=($(compgen -W "$values" -- "$word"))
  else
    COMPREPLY=($(compgen -f -- "$word"))
  fi
}}
complete -o filenames -F _textual_inversion {PROGRAM}
"""


def _zsh(commands: list[_Command]) -> str:
    names = " ".join(_quoted(f"{each.name}:{each.help}") for each in commands)
    cases = "".join(f"    {each.name}) _arguments {' '.join(_zsh_arguments(each))} ;;\n" for each in commands)
    return f"""#compdef {PROGRAM}
# Completion of {PROGRAM} for zsh.
_textual_inversion() {{
  local -a commands=({names})
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  shift words
  (( CURRENT-- ))
  case $words[1] in
{cases}  esac
}}
if [ "$funcstack[1]" = "_textual-inversion" ]; then
  _textual_inversion "$@"
else
  compdef _textual_inversion {PROGRAM}
fi
"""


def _zsh_arguments(each: _Command) -> list[str]:
    rows = []
    for option in each.options:
        help_text = option.help.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
        choices = " ".join(choice.replace(" ", "\\ ") for choice in option.choices)
        value = f":value:{f'({choices})' if choices else '_files'}" if option.takes_value else ""
        rows += [_quoted(f"{flag}[{help_text}]{value}") for flag in option.flags]
    rows.append(_quoted(f"*:argument:{'(' + ' '.join(each.choices) + ')' if each.choices else '_files'}"))
    return rows


def _fish(commands: list[_Command]) -> str:
    lines = [f"# Completion of {PROGRAM} for fish."]
    for each in commands:
        lines.append(f"complete -c {PROGRAM} -n __fish_use_subcommand -f -a {each.name} -d {_fish_quoted(each.help)}")
        seen = f"complete -c {PROGRAM} -n '__fish_seen_subcommand_from {each.name}'"
        if each.choices:
            lines.append(f"{seen} -f -a {_fish_quoted(' '.join(each.choices))}")
        for option in each.options:
            names = " ".join(map(_fish_flag, option.flags))
            words = " ".join(_fish_quoted(choice) for choice in option.choices)
            value = f" -x -a {_fish_quoted(words)}" if words else " -r" if option.takes_value else ""
            lines.append(f"{seen} {names} -d {_fish_quoted(option.help)}{value}")
    return "\n".join(lines) + "\n"


def _fish_flag(flag: str) -> str:
    """An option as fish declares it: `--long`, `-s`, or `-old` with one dash and several letters."""
    if flag.startswith("--"):
        return f"-l {flag[2:]}"
    return f"-s {flag[1:]}" if len(flag) == 2 else f"-o {flag[1:]}"


def _fish_quoted(text: str) -> str:
    """A word in single quotes, as fish reads it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
