"""A prepared data set: every picture is the one that was prepared, and every box lies in it."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from qwenft.core.boxes import Size
from qwenft.core.errors import DataError
from qwenft.core.events import Emit, ignore, progress
from qwenft.core.files import sha256_of_file
from qwenft.core.samples import PreparedDataset, Sample, open_dataset
from qwenft.doctor.findings import Finding
from qwenft.prepare.pictures import upright_size

READERS: Final = 8
TOLERANCE_PX: Final = 0.01
"""Boxes are written with three decimals."""
EVERY: Final = 100
PREPARE: Final = "qwenft prepare"


@dataclass
class _Wrong:
    """What was found, by kind: how often, and the first example."""

    mend: str
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def note(self, kind: str, example: str) -> None:
        """Count one more."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.examples.setdefault(kind, example)

    def finding(self, check: str, kinds: Iterable[str], fine: str) -> Finding:
        """One row about these kinds."""
        seen = [kind for kind in kinds if kind in self.counts]
        if not seen:
            return Finding(check, "ok", fine)
        text = "; ".join(f"{self.counts[kind]:,} {kind}, e.g. {self.examples[kind]}" for kind in seen)
        return Finding(check, "broken", text, self.mend)


def check_data(name: str | Path, *, root: Path | None = None, emit: Emit = ignore) -> list[Finding]:
    """Read a prepared data set through: samples, pictures by hash and size, boxes, splits.

    Raises DataError where there is no prepared data set; what is wrong inside it is a finding.
    """
    data = open_dataset(name, root)
    mend = _again(data)
    samples, found = _samples(data, mend)
    wrong = _Wrong(mend)
    sizes = {sample.image: sample.image_wh for split in samples.values() for sample in split}
    for done, (image, kind, example) in enumerate(_pictures(data.path, sizes), start=1):
        if kind:
            wrong.note(kind, example)
        if done % EVERY == 0 or done == len(sizes):
            emit(progress("pictures", done, len(sizes)))
        del image
    for split in samples.values():
        _look(split, wrong)
    pictures = f"{len(sizes):,} pictures"
    found.append(
        wrong.finding("pictures", ("missing", "changed", "unreadable"), f"{pictures}, each as it was prepared")
    )
    found.append(wrong.finding("sizes", ("of another size",), "as the samples say"))
    boxes = sum(len(sample.objects) for split in samples.values() for sample in split)
    found.append(wrong.finding("boxes", ("outside the picture", "flat or reversed"), f"{boxes:,} boxes, all inside"))
    return [*found, _splits(data, samples, mend)]


def _again(data: PreparedDataset) -> str:
    """The command that prepares it again."""
    typed = data.manifest.command
    command = typed if typed.startswith(PREPARE) else f"{PREPARE} --dataset …"
    return command if "--overwrite" in command else f"{command} --overwrite"


def _samples(data: PreparedDataset, mend: str) -> tuple[dict[str, tuple[Sample, ...]], list[Finding]]:
    """The samples of each split that can be read, and a finding about them."""
    samples, broken = {}, []
    for name in data.manifest.splits:
        try:
            samples[name] = data.samples(name)
        except DataError as error:
            broken.append(Finding(f"split {name}", "broken", str(error), mend))
    count = sum(map(len, samples.values()))
    ids = {sample.id for split in samples.values() for sample in split}
    if len(ids) < count:
        broken.append(Finding("samples", "broken", f"{count - len(ids):,} ids stand there twice", mend))
    return samples, broken or [Finding("samples", "ok", f"{count:,} samples, as the manifest says")]


def _pictures(folder: Path, sizes: dict[str, Size]) -> Iterator[tuple[str, str, str]]:
    """(picture, what is wrong with it or empty, example), read by several threads."""

    def look(image: str) -> tuple[str, str, str]:
        path = folder / image
        if not path.is_file():
            return image, "missing", image
        if sha256_of_file(path) != path.stem:
            return image, "changed", image
        try:
            found_wh = upright_size(path)
        except DataError:
            return image, "unreadable", image
        if found_wh != sizes[image]:
            return image, "of another size", f"{image}: {found_wh}, its sample says {sizes[image]}"
        return image, "", ""

    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(look, sizes)


def _look(samples: Iterable[Sample], wrong: _Wrong) -> None:
    for sample in samples:
        for item in sample.objects:
            x1, y1, x2, y2 = item.bbox
            if not (x1 < x2 and y1 < y2):
                wrong.note("flat or reversed", f"{sample.id}: {item.bbox}")
            elif min(x1, y1) < -TOLERANCE_PX or x2 > sample.width + TOLERANCE_PX or y2 > sample.height + TOLERANCE_PX:
                wrong.note("outside the picture", f"{sample.id}: {item.bbox} in {sample.image_wh}")


def _splits(data: PreparedDataset, samples: dict[str, tuple[Sample, ...]], mend: str) -> Finding:
    """What is trained on, what is held out, and whether a picture stands in both."""
    roles = {info.role for info in data.manifest.splits.values()}
    text = ", ".join(f"{name} ({info.role}) {info.samples:,}" for name, info in data.manifest.splits.items())
    seen: dict[str, str] = {}
    shared = 0
    for name, split in samples.items():
        for picture in {sample.picture for sample in split}:
            shared += seen.setdefault(picture, name) != name
    if shared:
        return Finding("splits", "warning", f"{text}; {shared:,} pictures stand in more than one", mend)
    if "train" not in roles or roles == {"train"}:
        return Finding("splits", "warning", f"{text}: nothing to {'judge' if 'train' in roles else 'train'} on", mend)
    return Finding("splits", "ok", f"{text}; no picture in two")
