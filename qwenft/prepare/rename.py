"""Categories under names of the user's: `--rename old=new`, in boxes, in lists of categories, beside expressions."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from qwenft.core.errors import DataError, UsageError, nearest
from qwenft.prepare.rows import BadRow, RawBox, Row, Source, counted

_EXAMPLE: Final = 'qwenft prepare --rename "RBC=red blood cell,WBC=white blood cell" …'
_FILES: Final = (".yaml", ".yml")
_SHOWN: Final = 10


def read_names(text: str) -> dict[str, str]:
    """`old=new,…`, or a YAML file with a line `old: new` for each.  Raises UsageError or DataError.

    >>> read_names("RBC=red blood cell, WBC = white blood cell")
    {'RBC': 'red blood cell', 'WBC': 'white blood cell'}
    """
    if text.lower().endswith(_FILES):
        return _from_yaml(Path(text).expanduser())
    names = {}
    for pair in text.split(","):
        old, equals, new = (word.strip() for word in pair.partition("="))
        if not (equals and old and new) or old in names:
            problem = "is renamed twice" if old in names else "is no old=new"
            raise UsageError(f"--rename: {old if old in names else pair.strip()!r} {problem}", hint=_EXAMPLE)
        names[old] = new
    return names


def _from_yaml(path: Path) -> dict[str, str]:
    import yaml  # only where there is a file

    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506 - it makes only texts
    except OSError as error:
        raise DataError(f"--rename: {path.absolute()} cannot be read: {error.strerror}", hint=_EXAMPLE) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"--rename: {path.absolute()} is no YAML ({error})", hint="RBC: red blood cell") from error
    if not isinstance(value, dict) or not all(isinstance(new, str) and new.strip() for new in value.values()):
        raise DataError(f"--rename: {path.absolute()} needs a line `old: new` a name", hint="RBC: red blood cell")
    return {str(old).strip(): new.strip() for old, new in value.items()}


class Renaming:
    """Gives the rows of a source the new names, and knows which of the old ones came up."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names
        self._boxes: Counter[str] = Counter()
        self._seen: dict[str, None] = {}

    def over(self, source: Source) -> Source:
        """The source with every category under its new name; expressions stay as they are."""
        if not self.names:
            return source
        return replace(source, rows=lambda: map(self._row, source.rows()))

    def _row(self, row: Row) -> Row:
        if isinstance(row, BadRow) or row.task == "caption":
            return row
        labelled = row.boxes if row.task == "detection" else ()
        self._seen.update(dict.fromkeys((*(row.categories or ()), *(box.label for box in labelled if box.label))))
        self._boxes.update(box.label for box in labelled)
        return replace(
            row,
            boxes=tuple(self._each(row.boxes)) if labelled else row.boxes,
            around=None if row.around is None else tuple(self._each(row.around)),
            categories=None
            if row.categories is None
            else tuple(dict.fromkeys(self.names.get(name, name) for name in row.categories)),
        )

    def _each(self, boxes: Iterable[RawBox]) -> Iterator[RawBox]:
        for box in boxes:
            yield replace(box, label=self.names[box.label]) if box.label in self.names else box

    def told(self, source: Source) -> Source:
        """The source with what was renamed in what is said and kept of it, once its rows are read.

        Raises DataError for a name that no row has: it was probably mistyped.
        """
        for old in self.names:
            if old not in self._seen:
                known = nearest(old, self._seen) if self._seen else "leave out --rename: no row has a category"
                raise DataError(f"--rename: no row has a category {old!r}", hint=known)
        shown = [f"{old} is now {new} ({self._boxes[old]:,})" for old, new in self.names.items()]
        if not shown:
            return source
        more = f" and {len(shown) - _SHOWN:,} more" if len(shown) > _SHOWN else ""
        said = f"{counted(len(shown), 'category', 'categories')} renamed: {', '.join(shown[:_SHOWN])}{more}"
        about = {**source.about, "renamed": dict(self.names)}
        return replace(source, about=about, notes=(*source.notes, said))
