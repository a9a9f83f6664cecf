"""The settings of a run explained, one by one: name, default, what is allowed, what it is."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from qwenft.core.config import GROUPS, SHORT, TrainConfig, setting_fields, setting_schema
from qwenft.core.errors import ConfigError

_KINDS: Final = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
_BOUNDS: Final = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting."""

    name: str
    default: Any
    allowed: str
    """In words."""
    text: str
    value: Any = None
    """In the run that was asked about; the default where none was."""

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return asdict(self)

    def facts(self, *, of_run: bool) -> list[tuple[str, str]]:
        """For people."""
        rows = [("setting", self.name), ("what it is", self.text), ("allowed", self.allowed)]
        rows.append(("default", _shown(self.default)))
        return [*rows, ("in this run", _shown(self.value))] if of_run else rows


def all_settings(config: TrainConfig | None = None) -> list[Setting]:
    """Every setting in its order; config: the run whose values are shown."""
    values = (config or TrainConfig()).model_dump(mode="json")
    defaults = TrainConfig().model_dump(mode="json")
    return [
        Setting(
            name,
            _value(defaults, name),
            allowed(setting_schema(name)),
            str(field.description),
            _value(values, name),
        )
        for name, field in setting_fields().items()
    ]


def _value(settings: Mapping[str, Any], name: str) -> Any:
    group, _, key = name.rpartition(".")
    return settings[group][key] if group else settings[key]


def explain(name: str, config: TrainConfig | None = None) -> Setting:
    """One setting, by its name or by what others call it: `lr`, `bs`.  Raises ConfigError naming the nearest."""
    wanted = name.strip().lstrip("-").replace("-", "_")
    settings = {setting.name: setting for setting in all_settings(config)}
    wanted = SHORT.get(wanted, wanted)
    if wanted in GROUPS:
        inside = [f"{wanted}.{key}" for key in GROUPS[wanted].model_fields]
        raise ConfigError(f"{wanted} has settings of its own: {', '.join(inside)}", hint=f"qwenft config {inside[0]}")
    if wanted not in settings:
        near = difflib.get_close_matches(wanted, settings, n=1)
        raise ConfigError(f"there is no setting {name!r}", hint=f"qwenft config {near[0]}" if near else "qwenft config")
    return settings[wanted]


def allowed(schema: Mapping[str, Any]) -> str:
    """What a field takes, in words, from its JSON schema.

    >>> allowed({"type": "integer", "exclusiveMinimum": 0})
    'a whole number above 0'
    >>> allowed({"anyOf": [{"enum": ["a", "b"]}, {"type": "null"}]})
    'a or b, or null'
    """
    if "anyOf" in schema:
        kinds = [allowed(kind) for kind in schema["anyOf"] if kind.get("type") != "null"]
        unset = any(kind.get("type") == "null" for kind in schema["anyOf"])
        return f"{', or '.join(kinds)}{', or null' if unset else ''}"
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        *first, last = (str(word) for word in schema["enum"])
        return f"{', '.join(first)} or {last}" if first else last
    if schema.get("type") == "array":
        words = schema["items"].get("enum")
        return f"any of these, with commas: {', '.join(words)}" if words else "several, with commas"
    bounds = [text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema]
    return " ".join([_KINDS.get(str(schema.get("type")), "text"), " and ".join(bounds)]).strip()


def _shown(value: Any) -> str:
    if value is None:
        return "null (unset)"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
