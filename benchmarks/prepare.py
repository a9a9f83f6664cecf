"""How fast `prepare` is: rows/s and memory beside reading the same pictures once, and copying the same bytes.

    python benchmarks/prepare.py [--rows 1000 10000] [--files 400] [--num-proc 1 2]

Each figure is taken in a process of its own.  CPU seconds count its children too, own CPU seconds do not: with several
processes the run lasts at least as long as its busiest one.  Memory is its own (RssAnon) at its peak.  --rows: a
parquet file with ten expressions a picture, 640 x 480 JPEG of about 90 kB, as the RefCOCO family is published.
--files: pictures of 1600 x 1200 in a folder, one expression each, so that decoding outweighs the rows.  Read the CPU
seconds where other work shares the machine.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

ASKED = 10
GROUP = 10
"""Pictures in a group of the parquet file: `datasets` writes pictures 100 rows at a time."""
SIZE = (640, 480)


def pictures(count: int, size: tuple[int, int]) -> Iterator[bytes]:
    """JPEGs with something everywhere, all different."""
    import numpy as np
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(16)]
    scenes = [Image.fromarray(fields).resize(size, Image.Resampling.BICUBIC) for fields in noise]
    for number in range(count):
        picture = scenes[number % 16].copy()
        ImageDraw.Draw(picture).text((300, 220), str(number), fill="white", font_size=60)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=88)
        yield buffer.getvalue()


def make_files(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    with (folder / "train.jsonl").open("w") as file:
        for number, content in enumerate(pictures(count, (1600, 1200))):
            (folder / f"{number}.jpg").write_bytes(content)
            row = {"image": f"{number}.jpg", "expression": f"thing {number}", "bbox": [1000, 800, 1500, 1100]}
            file.write(json.dumps(row) + "\n")


def make_table(folder: Path, rows: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir(parents=True)
    writer, numbered = None, enumerate(pictures(rows // ASKED, SIZE))
    while group := list(islice(numbered, GROUP)):
        asked = [
            {
                "image": {"bytes": content, "path": None},
                "question": f"thing {number} {n}",
                "bbox": [400, 300, 600, 400 + n],
            }
            for number, content in group
            for n in range(ASKED)
        ]
        table = pa.Table.from_pylist(asked)
        writer = writer or parquet.ParquetWriter(folder / "train.parquet", table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


def contents(folder: Path) -> Iterator[bytes]:
    """Every row's picture, by the usual way: through `datasets`, or from its file."""
    import datasets

    if not (folder / "train.parquet").exists():
        yield from (path.read_bytes() for path in sorted(folder.glob("*.jpg")))
        return
    table = datasets.load_dataset("parquet", data_files=str(folder / "train.parquet"), split="train")
    yield from (row["image"]["bytes"] for row in table)


def decode_once(folder: Path) -> None:
    """Every row read, every distinct picture decoded once: the least there is to do."""
    from PIL import Image

    seen = set()
    for content in contents(folder):
        if content not in seen:
            seen.add(content)
            with Image.open(io.BytesIO(content)) as image:
                image.load()


def copy_and_hash(folder: Path) -> None:
    """Each distinct picture's bytes hashed and written, nothing decoded."""
    import hashlib

    with tempfile.TemporaryDirectory(dir=folder.parent) as target:
        for content in contents(folder):
            path = Path(target) / hashlib.sha256(content).hexdigest()
            if not path.exists():
                path.write_bytes(content)


def prepare(folder: Path, num_proc: int, again: bool = False) -> None:
    from qwenft.prepare.build import prepare_dataset

    out = folder.parent / f"out-{num_proc}"
    prepare_dataset(str(folder), out=out, num_proc=num_proc, overwrite=again, preview=0, bbox_format="xyxy")


def measured(what: str, folder: Path, num_proc: int) -> None:
    """In the child: run one of them and print the figures."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import datasets  # its import (2 s) is no part of the figure

    import qwenft.prepare.build  # noqa: F401 - nor ours

    datasets.disable_progress_bars()
    own = [0]
    threading.Thread(target=watch, args=(own,), daemon=True).start()
    before = cpu_seconds()[0]
    start = time.perf_counter()
    if what.startswith("prepare"):
        prepare(folder, num_proc, again="again" in what)
    else:
        {"decode once": decode_once, "copy and hash": copy_and_hash}[what](folder)
    seconds = time.perf_counter() - start
    own_cpu, others = cpu_seconds()
    own_cpu -= before
    figures = {"seconds": seconds, "cpu": own_cpu + others, "own_cpu": own_cpu, "own_mb": max(own) / 1024}
    print(json.dumps({key: round(value, 2) for key, value in figures.items()}))


def cpu_seconds() -> tuple[float, float]:
    """Of this process, and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return used[0].ru_utime + used[0].ru_stime, used[1].ru_utime + used[1].ru_stime


def watch(own: list[int]) -> None:
    """Note the memory that is the process's own (RssAnon): pages of mapped tables are the system's to take back."""
    while True:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
        own.append(int(line.split()[1]))
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="*", default=[1000, 10000])
    parser.add_argument("--files", type=int, nargs="*", default=[400])
    parser.add_argument("--num-proc", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        measured(given.one[0], Path(given.one[1]), int(given.one[2]))
        return
    print("| rows | pictures | what | processes | s | CPU s | own CPU s | rows/s | pictures/s | own MB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    sets = [(rows, rows // ASKED, make_table) for rows in given.rows]
    sets += [(files, files, make_files) for files in given.files]
    for rows, count, make in sets:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "set"
            make(source, rows)
            jobs = [("copy and hash", 1), ("decode once", 1)]
            for number in given.num_proc:
                jobs += [("prepare", number), ("prepare again", number)]
            for what, number in jobs:
                figures = child(what, source, number)
                seconds = figures["seconds"]
                cells = [f"{rows:,}", f"{count:,}", what, number, seconds, figures["cpu"], figures["own_cpu"]]
                cells += [f"{rows / seconds:,.0f}", f"{count / seconds:,.0f}", f"{figures['own_mb']:.0f}"]
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


def child(what: str, source: Path, number: int) -> dict[str, float]:
    """Each with a cache of its own: what a first run costs is what is asked."""
    with tempfile.TemporaryDirectory(dir=source.parent) as home:
        environment = {**os.environ, "HF_HOME": home, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--one", what, source, str(number)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
