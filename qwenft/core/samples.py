"""Sample, prepared data set and manifest: what `prepare` writes and every later stage reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qwenft.core.answer import Task
from qwenft.core.boxes import Box, Size
from qwenft.core.errors import DataError, nearest
from qwenft.core.files import read_json, read_records

SCHEMA_VERSION: Final = 1
TASKS: Final[tuple[Task, ...]] = ("grounding", "detection", "caption")
Role = Literal["train", "held-out", "test"]


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One thing in a picture."""

    bbox: Box
    """x1, y1, x2, y2 in image px."""
    label: str
    crowd: bool = False
    """COCO's `iscrowd`: a group, ignored in training targets and neutral in scoring."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in a sample; `crowd` only where true."""
        value: dict[str, Any] = {"bbox": [round(v, 3) for v in self.bbox], "label": self.label}
        return {**value, "crowd": True} if self.crowd else value


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about one picture, with its true answer."""

    id: str
    task: Task
    image: str
    """Path relative to the prepared data set's folder: images/ab/<sha256>.<ext>."""
    width: int
    height: int
    query: str | None = None
    """Grounding: the expression.  None for the other tasks."""
    objects: tuple[SceneObject, ...] = ()
    """Empty means "not in this picture", a real sample."""
    categories: tuple[str, ...] = ()
    """Detection: what was asked for."""
    captions: tuple[str, ...] = ()
    """Caption: the references."""
    negative: str | None = None
    """The kind of a question that `prepare --negatives` made (docs/negatives.md); None for the source's own."""

    @property
    def image_wh(self) -> Size:
        """(width, height) of the stored picture in px."""
        return (self.width, self.height)

    @property
    def picture(self) -> str:
        """SHA-256 of the picture's bytes: the same picture has the same one in every data set."""
        return picture_of(self.image)

    def to_json(self) -> dict[str, Any]:
        """The form of a line in `<split>.jsonl`."""
        value: dict[str, Any] = {"id": self.id, "task": self.task, "image": self.image}
        value |= {"width": self.width, "height": self.height}
        if self.task == "grounding":
            value["query"] = self.query
        if self.task == "detection":
            value["categories"] = list(self.categories)
        if self.task == "caption":
            value["captions"] = list(self.captions)
        else:
            value["objects"] = [item.to_json() for item in self.objects]
        return value if self.negative is None else {**value, "negative": self.negative}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Sample":
        """Read a line of `<split>.jsonl`.  Raises KeyError, TypeError or ValueError where it is not one."""
        task = value["task"]
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}")
        image = PurePosixPath(str(value["image"]))
        if image.is_absolute() or ".." in image.parts:
            raise ValueError(f"the picture {str(image)!r} leaves the data set's folder")
        objects = tuple(
            SceneObject(_box(item["bbox"]), str(item.get("label", "")), bool(item.get("crowd", False)))
            for item in value.get("objects", ())
        )
        return cls(
            id=str(value["id"]),
            task=task,
            image=str(value["image"]),
            width=int(value["width"]),
            height=int(value["height"]),
            query=value.get("query"),
            objects=objects,
            categories=tuple(value.get("categories", ())),
            captions=tuple(value.get("captions", ())),
            negative=value.get("negative"),
        )


def picture_of(image: str) -> str:
    """The hash in a picture's path.

    >>> picture_of("images/ab/abc.jpg")
    'abc'
    """
    return image.rpartition("/")[2].rpartition(".")[0]


def _box(numbers: list[float]) -> Box:
    x1, y1, x2, y2 = (float(n) for n in numbers)
    return (x1, y1, x2, y2)


class SplitInfo(BaseModel):
    """What a split holds and what it is for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    role: Role
    samples: int
    pictures: int
    tasks: dict[str, int]


class Manifest(BaseModel):
    """`manifest.json`: where a prepared data set came from, what was found out about it, and every check's result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int
    name: str
    source: dict[str, Any]
    """kind, path or hub id, revision, splits taken."""
    command: str
    versions: dict[str, str]
    splits: dict[str, SplitInfo]
    bbox: dict[str, Any]
    """convention, and the evidence for it."""
    counts: dict[str, int]
    """rows_read + questions_made = samples + rejected; objects_read + objects_repeated = objects, taken or not;
    negatives_<kind>; pictures; turned (stored upright)."""
    checks: list[dict[str, Any]]
    """check, result, and the numbers behind it."""
    notes: list[str]
    """What was said aloud: benchmark splits, roles made up, leaks."""


@dataclass(frozen=True)
class PreparedDataset:
    """A folder that `prepare` made.  Reading it never changes it; it may be a link or read-only."""

    path: Path
    manifest: Manifest
    _samples: dict[str, tuple[Sample, ...]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path) -> "PreparedDataset":
        """Open a prepared data set.  Raises DataError where it is not one."""
        if not path.exists():
            raise DataError(f"{path.absolute()} does not exist", hint=_known_datasets(path))
        manifest_path = path / "manifest.json"
        if not manifest_path.is_file():
            raise DataError(
                f"{path.absolute()} is no prepared data set: it has no manifest.json",
                hint=f"qwenft prepare --dataset {path}",
            )
        value = read_json(manifest_path)
        version = value.get("schema_version") if isinstance(value, dict) else None
        if version != SCHEMA_VERSION:
            raise DataError(
                f"{manifest_path.absolute()} has schema version {version}, this qwenft reads {SCHEMA_VERSION}",
                hint="prepare the data set again with this version",
            )
        try:
            return cls(path.absolute(), Manifest.model_validate(value))
        except ValidationError as error:
            raise DataError(f"{manifest_path.absolute()} is not whole: {error.errors()[0]['msg']}") from error

    @property
    def name(self) -> str:
        """The name `prepare` gave it."""
        return self.manifest.name

    @cached_property
    def held_out(self) -> str | None:
        """Name of the split that training evaluates on, if there is one."""
        roles = {info.role: name for name, info in reversed(self.manifest.splits.items())}
        return roles.get("held-out") or roles.get("test")

    @cached_property
    def train(self) -> str:
        """Name of the split to train on.  Raises DataError if there is none."""
        for name, info in self.manifest.splits.items():
            if info.role == "train":
                return name
        raise DataError(f"{self.path} has no split to train on", hint="qwenft prepare --val-fraction 0.1")

    def samples(self, split: str) -> tuple[Sample, ...]:
        """All samples of a split.  Raises DataError for an unknown split or a broken line."""
        if split not in self.manifest.splits:
            raise DataError(f"{self.path} has no split {split!r}", hint=nearest(split, self.manifest.splits))
        if split not in self._samples:
            self._samples[split] = self._read(split)
        return self._samples[split]

    def _read(self, split: str) -> tuple[Sample, ...]:
        info = self.manifest.splits[split]
        path = self.path / info.file
        found = []
        for record in read_records(path) if info.samples else ():
            try:
                found.append(Sample.from_json(record.value))
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{path}, {record.where}: not a sample ({error!r})", hint="prepare it again") from error
        if len(found) != info.samples:
            raise DataError(
                f"{path} holds {len(found)} samples, its manifest says {info.samples}",
                hint="it was changed after prepare: prepare it again",
            )
        return tuple(found)

    def picture_path(self, sample: Sample) -> Path:
        """Where a sample's picture lies."""
        return self.path / sample.image


def default_dataset(root: Path) -> PreparedDataset:
    """The one prepared data set under `root`/data.  Raises DataError where there is none or more than one."""
    found = prepared_under(root / "data")
    if not found:
        raise DataError(f"no prepared data set under {(root / 'data').absolute()}", hint="qwenft prepare --dataset …")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"several prepared data sets under data/: {names}", hint=f"--data {found[0]}")
    return PreparedDataset.open(found[0])


def prepared_under(folder: Path) -> list[Path]:
    """The prepared data sets directly in a folder, by name."""
    return sorted(path.parent for path in folder.glob("*/manifest.json") if not path.parent.name.startswith("."))


def open_dataset(name_or_path: str | Path | None, root: Path | None = None) -> PreparedDataset:
    """Open a data set by path, by its name under data/, or (None) the only one there is.

    A folder that is no prepared data set (the source, say) does not hide the prepared one of its name.

    >>> from qwenft import open_dataset
    >>> data = open_dataset("scenes")
    >>> sample = data.samples(data.train)[0]
    >>> sample.task, len(sample.objects), data.picture_path(sample).is_file()
    ('grounding', 1, True)
    """
    base = root or Path.cwd()
    if name_or_path is None:
        return default_dataset(base)
    path = base / Path(name_or_path).expanduser()
    by_name = base / "data" / str(name_or_path)
    if not (path / "manifest.json").is_file() and (by_name / "manifest.json").is_file():
        return PreparedDataset.open(by_name)
    return PreparedDataset.open(path)


def _known_datasets(path: Path) -> str:
    names = [found.name for found in prepared_under(Path.cwd() / "data")]
    return nearest(path.name, names) if names else "qwenft prepare --dataset …"


def as_task(text: str) -> Task:
    """Read a task's name.  Raises DataError naming the nearest."""
    if text not in TASKS:
        raise DataError(f"unknown task {text!r}", hint=nearest(text, TASKS))
    return text
