"""The data set's own README.md and a table a split: with them `datasets.load_dataset` opens a prepared folder.

The card names the files of each split.  ImageFolder takes a table whose `file_name` lies below the table's own folder
and decodes the picture when its row is looked at (datasets 5.2, packaged_modules/folder_based_builder; docs:
huggingface.co/docs/datasets/image_dataset).  Tables rather than our JSON lines: there types would be guessed split by
split, and a split without any box would not fit the others.

What the library read once it keeps under the folder's last name and the card's own configuration, with the pictures'
full paths, and never asks whether the files are still those (datasets 5.2, load.py, LocalDatasetModuleFactory).  So the
configuration's description is a mark of content and place: another data set of the name is read anew.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from qwenft.core.files import sha256_of_file, write_whole
from qwenft.core.samples import Manifest, Sample

ROWS_AT_ONCE: Final = 100
PICTURES: Final = "images/*/*"

TEXT: Final = """\
# {name}

{samples:,} samples on {pictures:,} pictures, made by `qwenft prepare`{source}.

| split | for | samples | pictures | task |
|---|---|---|---|---|
{splits}

`bbox` is x1, y1, x2, y2 in pixels of the picture; no `objects` means that the thing asked for is not in it.
`manifest.json` says how the boxes were read and what was checked, `rejected.jsonl` holds the rows that were not taken.

```python
from datasets import load_dataset

data = load_dataset("path/to/this/folder")  # each row's `image` is a PIL picture
```
"""


def write_card(folder: Path, manifest: Manifest, samples_of: Mapping[str, Sequence[Sample]]) -> None:
    """Write README.md and <split>.parquet, which holds the samples with the names of their pictures, never pixels."""
    names = split_names([split for split, samples in samples_of.items() if samples])
    for split, name in names.items():
        _write_table(folder / f"{name}.parquet", samples_of[split])
    hashes = [sha256_of_file(folder / f"{name}.parquet") for name in names.values()]
    mark = hashlib.sha256("\n".join([str(folder.resolve()), *hashes]).encode()).hexdigest()
    files = [{"split": name, "path": [f"{name}.parquet", PICTURES]} for name in names.values()]
    listed = {
        "config_name": "default",
        "description": f"state {mark[:16]}",
        "data_files": files,
        "metadata_filenames": [f"{name}.parquet" for name in names.values()],
    }
    head = yaml.safe_dump({"configs": [listed]}, sort_keys=False)
    write_whole(folder / "README.md", f"---\n{head}---\n{_text(manifest, names)}")


def split_names(splits: Sequence[str]) -> dict[str, str]:
    """Split -> its name in `datasets`, which takes letters, digits and `_` alone, each name once.

    >>> split_names(["train", "test-a", "test_a"])
    {'train': 'train', 'test-a': 'test_a', 'test_a': 'test_a_'}
    """
    names: dict[str, str] = {}
    for split in splits:
        name = re.sub(r"\W+", "_", split)
        while name in names.values():
            name += "_"
        names[split] = name
    return names


def _text(manifest: Manifest, names: Mapping[str, str]) -> str:
    about = manifest.source
    # A folder's path is this machine's, a hub id everybody's.
    source = f" from {about['id']}, revision {about.get('revision')}" if about.get("id") else ""
    rows = [
        f"| {name} | {info.role} | {info.samples:,} | {info.pictures:,} | {', '.join(info.tasks)} |"
        for name, info in ((name, manifest.splits[split]) for split, name in names.items())
    ]
    return TEXT.format(
        name=re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", manifest.name),
        samples=manifest.counts["samples"],
        pictures=manifest.counts["pictures"],
        source=source,
        splits="\n".join(rows),
    )


def _write_table(path: Path, samples: Sequence[Sample]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, objects = pa.list_(pa.string()), {"bbox": pa.list_(pa.float64()), "label": pa.string(), "crowd": pa.bool_()}
    columns = {"id": pa.string(), "task": pa.string(), "file_name": pa.string(), "width": pa.int32()}
    columns |= {"height": pa.int32(), "query": pa.string(), "objects": pa.list_(pa.struct(objects))}
    columns |= {"categories": texts, "captions": texts, "negative": pa.string()}
    schema = pa.schema(columns)
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(samples), ROWS_AT_ONCE):
            rows = [_row(sample) for sample in samples[start : start + ROWS_AT_ONCE]]
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _row(sample: Sample) -> dict[str, Any]:
    """Each column in every row; the library calls the picture `image`."""
    row = sample.to_json()
    objects = [{"crowd": False, **item} for item in row.get("objects", ())]
    return {"categories": (), "captions": (), **row, "file_name": row.pop("image"), "objects": objects}
