"""Pascal VOC: a folder with one XML file a picture, as the challenge, LabelImg or Roboflow lay it out."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qwenft.core.boxes import Size
from qwenft.core.errors import DataError, nearest
from qwenft.prepare.origin import Origin, judge_origin
from qwenft.prepare.rows import (
    WHOLE,
    BadObject,
    BadRow,
    PictureFile,
    RawBox,
    RawRow,
    Reason,
    Request,
    Source,
    counted,
    parted,
)
from qwenft.prepare.sources.coco import SPLIT_WORD
from qwenft.prepare.sources.folders import by_stem

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

LISTS: Final = ("train", "val", "test")
"""Of ImageSets/Main; `trainval` repeats two of them, `<category>_train` lists the same pictures again."""
CORNERS: Final = ("xmin", "ymin", "xmax", "ymax")
MAX_XML_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Part:
    """One split: its annotation files by stem, which of them, and where its pictures lie."""

    name: str
    annotations: Mapping[str, Path]
    stems: Sequence[str]
    pictures: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Marked:
    """What one annotation file says."""

    filename: str
    declared_wh: Size | None
    boxes: tuple[RawBox, ...]
    """Corners as written."""
    bad_objects: tuple[BadObject, ...]
    difficult: int


def matches(path: Path) -> bool:
    """Whether it is a folder with VOC annotations, all together or one folder a split."""
    return path.is_dir() and any(_looks_like_voc(folder) for folder in (*_together(path), path, *_split_folders(path)))


def _looks_like_voc(folder: Path) -> bool:
    first = min(folder.glob("*.xml"), default=None)
    if first is None:
        return False
    with first.open("rb") as file:
        return b"<annotation" in file.read(4096)


def _together(path: Path) -> list[Path]:
    return [path / name for name in ("Annotations", "annotations") if (path / name).is_dir()]


def _split_folders(path: Path) -> list[Path]:
    return [folder for folder in sorted(path.glob("*/")) if SPLIT_WORD.search(folder.name.lower())]


def open_source(path: Path, request: Request) -> Source:
    """Read every annotation file of the splits asked for and describe the source."""
    if request.task not in (None, "detection"):
        raise DataError(f"{path} is VOC: boxes with categories", hint=f"qwenft prepare --dataset {path}")
    parts, unlisted = _parts(path, request)
    found: list[RawRow | BadRow] = []
    said: Counter[str] = Counter()
    for part in parts:
        found += _read_part(part, path, request, said)
    rows = [row for row in found if isinstance(row, RawRow)]
    origin = judge_origin(((box.numbers, box.where) for row in rows for box in row.boxes if len(box.numbers) == 4), 1)
    notes = [origin.sentence(), *_notes(said, unlisted)]
    about = {"path": str(path.absolute()), "origin": origin.to_json(), **said, "unlisted": unlisted}
    return Source(
        kind="voc",
        about=about,
        splits=tuple(part.name for part in parts),
        rows=lambda: (_shifted(row, origin) if isinstance(row, RawRow) else row for row in found),
        total=len(found),
        stated="xyxy",
        notes=tuple(notes),
    )


def _shifted(row: RawRow, origin: Origin) -> RawRow:
    return replace(row, boxes=tuple(replace(box, numbers=origin.shifted(box.numbers)) for box in row.boxes))


def _notes(said: Mapping[str, int], unlisted: int) -> Iterator[str]:
    if said.get("difficult"):
        yield f"{counted(said['difficult'], 'object')} marked difficult, kept as objects"
    if said.get("other_names"):
        yield f"{counted(said['other_names'], 'annotation file')} name another picture than their own: theirs is taken"
    if said.get("no_size"):
        yield f"{counted(said['no_size'], 'annotation file')} without a usable size"
    if unlisted:
        yield f"{counted(unlisted, 'annotation file')} in no list of ImageSets/Main left alone"


def _parts(path: Path, request: Request) -> tuple[list[Part], int]:
    """The splits: the lists of ImageSets/Main, else one folder a split, else all; and how many files are in none."""
    parts = _folder_parts(path) if not _together(path) else []
    unlisted = 0
    if not parts:
        home = next((folder for folder in (*_together(path), path) if _looks_like_voc(folder)), path)
        annotations = {file.stem: file for file in sorted(home.glob("*.xml"))}
        pictures = (path / "JPEGImages", path / "images", path / "Images", path, home)
        lists = _lists(path)
        parts = [Part(name, annotations, stems, pictures) for name, stems in lists.items()]
        unlisted = len(set(annotations) - {stem for stems in lists.values() for stem in stems}) if lists else 0
        if not parts:
            stems = sorted({*annotations, *(by_stem(pictures[:3]) if _together(path) else ())})
            parts = [Part(WHOLE, annotations, stems, pictures)]
    names = [part.name for part in parts]
    for wanted in request.splits:
        if wanted not in names:
            raise DataError(f"{path} has no split {wanted!r}", hint=nearest(wanted, names))
    return [part for part in parts if not request.splits or part.name in request.splits], unlisted


def _folder_parts(path: Path) -> list[Part]:
    """Roboflow's layout: pictures and their annotations together, one folder a split."""
    found = []
    for folder in _split_folders(path):
        annotations = {file.stem: file for file in sorted(folder.glob("*.xml"))}
        if annotations:
            stems = sorted({*annotations, *by_stem((folder,))})
            found.append(Part(folder.name, annotations, stems, (folder,)))
    return found


def _lists(path: Path) -> dict[str, list[str]]:
    folder = path / "ImageSets" / "Main"
    names = [name for name in LISTS if (folder / f"{name}.txt").is_file()]
    if not {"train", "val"} & set(names) and (folder / "trainval.txt").is_file():
        names = ["trainval", *names]
    found = {}
    for name in names:
        text = (folder / f"{name}.txt").read_text(encoding="utf-8-sig", errors="replace")
        found[name] = [line.split()[0] for line in text.splitlines() if line.strip()]
    return found


def _read_part(part: Part, root: Path, request: Request, said: Counter[str]) -> Iterator[RawRow | BadRow]:
    pictures = by_stem(part.pictures)
    seen = set()
    for stem in part.stems[: request.limit]:
        file = part.annotations.get(stem)
        where = file.name if file else stem
        original: dict[str, Any] = {"annotation": where}
        if stem in seen:
            yield BadRow(part.name, where, Reason.DUPLICATE_ID, f"{stem} is listed twice", original)
            continue
        seen.add(stem)
        if file is None:
            yield BadRow(part.name, where, Reason.ANNOTATION_MISSING, f"no {stem}.xml", original)
            continue
        marked = read_marked(file)
        if not isinstance(marked, Marked):
            yield BadRow(part.name, where, marked[0], marked[1], original)
            continue
        said["difficult"] += marked.difficult
        said["no_size"] += marked.declared_wh is None
        said["other_names"] += bool(marked.filename) and Path(marked.filename).stem != stem
        own = pictures.get(stem)
        name = own.name if own else marked.filename or f"{stem}.jpg"
        picture = PictureFile(name, (own.parent,) if own else part.pictures, root)
        original |= {"filename": marked.filename, "objects": len(marked.boxes) + len(marked.bad_objects)}
        yield RawRow(
            part.name, where, picture, "detection", original, stem, marked.declared_wh, None, marked.boxes,
            marked.bad_objects,
        )  # fmt: skip


def read_marked(file: Path) -> Marked | tuple[Reason, str]:
    """Read one annotation file, or say why not.  Entities and document types are refused unread."""
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException, ElementTree  # type: ignore[import-untyped]

    try:
        if file.stat().st_size > MAX_XML_BYTES:
            return Reason.ROW_UNREADABLE, f"{file.stat().st_size:,} bytes"
        root = ElementTree.fromstring(file.read_bytes(), forbid_dtd=True)
    except DefusedXmlException as error:
        return Reason.ROW_UNSAFE, type(error).__name__
    except (ParseError, ValueError, LookupError) as error:  # ValueError, LookupError: an encoding that is none
        return Reason.ROW_UNREADABLE, f"broken XML ({error})"
    except OSError as error:
        return Reason.ROW_UNREADABLE, f"cannot be read: {error.strerror}"
    return _marked(root, file.name)


def _marked(root: "Element", where: str) -> Marked:
    nodes = root.findall("object")
    boxes, bad = parted(_object(node, f"{where}, object {number}") for number, node in enumerate(nodes, 1))
    difficult = sum(_text(node, "difficult") == "1" for node in nodes)
    size = tuple(_side(root, f"size/{side}") for side in ("width", "height"))
    declared = (size[0], size[1]) if all(size) else None
    return Marked(_text(root, "filename"), declared, boxes, bad, difficult)


def _object(node: "Element", where: str) -> RawBox | BadObject:
    """One object; a person's parts have boxes of their own inside it, which are not its box."""
    label = _text(node, "name")
    written = {corner: _text(node, f"bndbox/{corner}") for corner in CORNERS}
    original: dict[str, Any] = {"name": label, "bndbox": written}
    try:
        numbers = tuple(float(text) for text in written.values())
    except ValueError:
        return BadObject(where, Reason.BOX_UNREADABLE, str(list(written.values()))[:80], original)
    if not label:
        return BadObject(where, Reason.LABEL_UNKNOWN, "no name", original)
    return RawBox(numbers, label, False, where, original)


def _text(node: "Element", path: str) -> str:
    return (node.findtext(path) or "").strip()


def _side(root: "Element", path: str) -> int:
    """A side in px; 0 where it is none (some tools write 0 x 0)."""
    try:
        return max(0, int(float(_text(root, path))))
    except (ValueError, OverflowError):
        return 0
