"""How fast `prepare` is: rows/s and peak memory beside reading the same table once, and copying the same bytes.

    python benchmarks/prepare.py [--rows 1000 10000] [--num-proc 1 2]

Each figure is taken in a process of its own; peak memory is that process's, and the largest child's on top.  The set: a
parquet file with ten expressions a picture, 640 x 480 JPEG of about 90 kB, as the RefCOCO family is published.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ASKED = 10
SIZE = (640, 480)


def make_set(folder: Path, rows: int) -> None:
    import numpy as np
    import pyarrow as pa
    from PIL import Image, ImageDraw
    from pyarrow import parquet

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(16)]
    scenes = [Image.fromarray(fields).resize(SIZE, Image.Resampling.BICUBIC) for fields in noise]
    writer = None
    for number in range(rows // ASKED):
        picture = scenes[number % 16].copy()
        ImageDraw.Draw(picture).text((300, 220), str(number), fill="white", font_size=60)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=88)
        image = {"bytes": buffer.getvalue(), "path": None}
        common = {"image": image}
        asked = [{"question": f"thing {number} {part}", "bbox": [400, 300, 600, 400 + part]} for part in range(ASKED)]
        table = pa.Table.from_pylist([common | row for row in asked])
        writer = writer or parquet.ParquetWriter(folder / "train.parquet", table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


def decode_once(folder: Path) -> None:
    """The same table through `datasets`, every row read, every distinct picture decoded once: the least there is to do."""
    import datasets
    from PIL import Image

    table = datasets.load_dataset("parquet", data_files=str(folder / "train.parquet"), split="train")
    seen = set()
    for row in table:
        content = row["image"]["bytes"]
        if content not in seen:
            seen.add(content)
            with Image.open(io.BytesIO(content)) as image:
                image.convert("RGB")


def copy_and_hash(folder: Path) -> None:
    """Each distinct picture's bytes hashed and written, nothing decoded."""
    import hashlib

    from pyarrow import parquet

    with tempfile.TemporaryDirectory(dir=folder.parent) as target:
        for batch in parquet.ParquetFile(folder / "train.parquet").iter_batches(1000, columns=["image"]):
            for value in batch["image"].field("bytes"):
                content = value.as_py()
                path = Path(target) / hashlib.sha256(content).hexdigest()
                if not path.exists():
                    path.write_bytes(content)


def prepare(folder: Path, num_proc: int, again: bool = False) -> None:
    from qwenft.prepare.build import prepare_dataset

    out = folder.parent / f"out-{num_proc}"
    prepare_dataset(str(folder), out=out, num_proc=num_proc, overwrite=again, preview=0)


def measured(what: str, folder: Path, num_proc: int) -> None:
    """In the child: run one of them and print the figures."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import datasets  # its import (2 s) is no part of the figure

    datasets.disable_progress_bars()
    start = time.perf_counter()
    if what.startswith("prepare"):
        prepare(folder, num_proc, again="again" in what)
    else:
        {"decode once": decode_once, "copy and hash": copy_and_hash}[what](folder)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"seconds": round(seconds, 2), "peak_mb": round(peak / 1024)}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--num-proc", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--one", nargs=3)
    given = parser.parse_args()
    if given.one:
        measured(given.one[0], Path(given.one[1]), int(given.one[2]))
        return
    print(
        "| rows | pictures | what | processes | s | rows/s | pictures/s | peak MB |\n|---|---|---|---|---|---|---|---|"
    )
    for rows in given.rows:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "set"
            make_set(source, rows)
            jobs = [("decode once", 1), ("copy and hash", 1), ("decode once", 1)]
            for number in given.num_proc:
                jobs += [("prepare", number), ("prepare again", number)]
            for what, number in jobs:
                environment = {**os.environ, "HF_HOME": str(Path(folder) / "home"), "OMP_NUM_THREADS": "1"}
                command = [sys.executable, __file__, "--one", what, source, str(number)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
                figures = json.loads(done.stdout.splitlines()[-1])
                rate = rows / figures["seconds"]
                print(
                    f"| {rows:,} | {rows // ASKED:,} | {what} | {number} | {figures['seconds']} | {rate:,.0f} | "
                    f"{rate / ASKED:,.0f} | {figures['peak_mb']} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
