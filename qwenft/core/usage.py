"""A mistyped command line: what was probably meant."""

import difflib
import re
from collections.abc import Sequence
from typing import Any, Final

from qwenft.core.errors import UsageError

_CHOICE: Final = re.compile(r"invalid value for '(?P<option>--[\w-]+)': '(?P<value>.*)' is not one of (?P<known>.*)")


def check_overrides(words: Sequence[str]) -> None:
    """Hold that each word is `key=value`: `epochs 2` is the usual slip.  Raises UsageError."""
    for at, word in enumerate(words):
        if "=" not in word:
            after = re.match(r"(?:= ?)?([^\s=]+)(?= |$)", " ".join(words[at + 1 :]))
            value = after.group(1) if after else "…"
            raise UsageError(f"{word!r} is no setting: expected key=value", hint=f"qwenft train {word}={value}")


def with_resume_value(words: Sequence[str]) -> list[str]:
    """Give `--resume` an empty value where none follows it: what follows is an option or a setting.

    >>> with_resume_value(["--resume", "workers=0"]), with_resume_value(["--resume", "mine"])
    (['--resume=', 'workers=0'], ['--resume', 'mine'])
    """
    found = list(words)
    if "--resume" in found:
        at = found.index("--resume")
        after = found[at + 1 : at + 2]
        if not after or after[0].startswith("-") or "=" in after[0]:
            found[at] = "--resume="
    return found


def role_pairs(text: str | None) -> dict[str, str]:
    """`image=img,bbox=box` as a mapping.  Raises UsageError."""
    pairs = {}
    for word in (text or "").split(",") if text else ():
        role, equals, column = word.partition("=")
        if not equals or not role.strip() or not column.strip():
            raise UsageError(f"--columns: expected role=column, got {word!r}", hint="--columns image=img,bbox=box")
        pairs[role.strip()] = column.strip()
    return pairs


def usage_error(error: Any, words: Sequence[str]) -> UsageError:
    """Typer's complaint about a command line as ours.

    error: with `format_message()`, and, as far as they apply, `ctx` and `option_name`.  words: the command line.
    The hint is the nearest command, option or setting, else the command's own example.
    """
    context, option = getattr(error, "ctx", None), getattr(error, "option_name", "")
    message = error.format_message().partition(" Did you mean ")[0].partition(" (Possible options")[0].rstrip(".")
    message = message[:1].lower() + message[1:].replace("Value error, ", "").replace("Input should", "it should")
    if context is None:
        command = f"qwenft {words[0]}" if words and words[0].isalpha() else "qwenft"
        return UsageError(message, hint=f"{command} --help")
    example, hint = (context.command.help or "").rpartition("Example: ")[2], ""
    if option:
        hint = _nearest_option(option, words, context)
    elif choices := _CHOICE.match(message):
        known = re.findall(r"'([^']*)'", choices["known"])
        near = difflib.get_close_matches(choices["value"], known, n=1, cutoff=0.4)
        hint = f"{context.command_path} {choices['option']} {near[0]}" if near else example
    elif hasattr(context.command, "commands"):
        near = difflib.get_close_matches(message.rpartition(" ")[2].strip("'"), context.command.commands)
        hint = f"{context.command_path} {near[0]}" if near else ""
    elif "\n" not in example:
        hint = example
    return UsageError(message, hint=hint or f"{context.command_path} --help")


def _nearest_option(option: str, words: Sequence[str], context: Any) -> str:
    """The command with the option that was probably meant, or, for `train`, with the setting; empty: none is near."""
    name = _plain(option)
    known = {
        _plain(word): word if getattr(param, "is_flag", False) else f"{word} "
        for param in context.command.params
        for word in param.opts
    }
    if context.info_name == "train":
        from qwenft.core.config import SHORT, setting_fields  # pydantic and yaml, so only here

        known = {key: f"{key}=" for key in setting_fields()} | known
        name = SHORT.get(name, name)
    value = re.search(rf"{re.escape(option)}[= ]([^-\s]\S*)", " ".join(words))
    for near in difflib.get_close_matches(name, known, n=1):
        start = f"{context.command_path} {known[near]}"
        return start if known[near][-1] not in " =" else start + (value.group(1) if value else "…")
    return ""


def _plain(option: str) -> str:
    return option.lstrip("-").replace("-", "_")
