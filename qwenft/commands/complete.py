"""What the shell offers behind Tab: names of runs, of data sets, of settings and their values; cheap imports only."""

from collections.abc import Iterable
from pathlib import Path

import typer


def complete_run(incomplete: str) -> list[str]:
    """Runs under runs/, the one that moved last first."""
    from qwenft.core.runs import all_runs

    return [run.path.name for run in all_runs() if run.path.name.startswith(incomplete)] or _folders(incomplete)


def complete_data(incomplete: str) -> list[str]:
    """Prepared data sets under data/, by name, also behind a comma; folders once a path is begun."""
    from qwenft.core.samples import prepared_under

    before, comma, begun = incomplete.rpartition(",")
    names = (path.name for path in prepared_under(Path.cwd() / "data"))
    return [f"{before}{comma}{name}" for name in names if name.startswith(begun)] or _folders(incomplete)


def complete_setting(incomplete: str) -> list[str]:
    """Names of settings."""
    from qwenft.core.config import setting_fields

    return [name for name in setting_fields() if name.startswith(incomplete)]


def complete_override(ctx: typer.Context, incomplete: str) -> list[str]:
    """`key=value`: names first; then the values that can be listed, or the default.

    bash takes `=` for a word of its own, and wants what stands behind it alone.
    """
    args = list(ctx.params.get("overrides") or ())
    key, equals, begun = incomplete.partition("=")
    if equals and key:
        return [f"{key}={value}" for value in _values(key, begun)]
    before = args[:-1] if args[-1:] == ["="] else args
    if before is not args or (not incomplete and before and before[-1] in complete_setting("")):
        return _values(before[-1], incomplete) if before else []
    names = complete_setting(incomplete)
    # More than one word: the shell then completes up to `=` and puts no blank behind it.
    return [f"{name}={value}" for name in names for value in ("", *_values(name, ""))]


def _values(key: str, begun: str) -> list[str]:
    """What may stand behind `key=`, as far as it can be listed, else the default."""
    from qwenft.core.config import setting_fields, setting_schema

    if key == "data":
        return complete_data(begun)
    field = setting_fields().get(key)
    if field is None:
        return []
    words = [*_words(setting_schema(key))]
    return [word for word in words or [str(field.default)] if word.startswith(begun) and word != "None"]


def _words(schema: dict[str, object]) -> Iterable[str]:
    """The words that a field takes, as far as its JSON schema lists them."""
    kinds = schema.get("anyOf", [schema])
    for kind in kinds if isinstance(kinds, list) else ():
        yield from map(str, kind.get("enum", ()))
        yield from [str(kind["const"])] if "const" in kind else []
        yield from ("true", "false") if kind.get("type") == "boolean" else ()


def _folders(incomplete: str) -> list[str]:
    """Folders that begin so, as a shell would offer them; asked only where no name of ours fits."""
    begun = Path(incomplete).expanduser()
    parent, start = (begun, "") if incomplete.endswith("/") else (begun.parent, begun.name)
    if not parent.is_dir():
        return []
    prefix = incomplete[: len(incomplete) - len(start)]
    found = sorted(path.name for path in parent.iterdir() if path.is_dir() and path.name.startswith(start or ""))
    return [f"{prefix}{name}/" for name in found if start.startswith(".") or not name.startswith(".")]
