"""Pictures are decoded once: in several processes, after an interruption, after a kill, and when prepared again."""

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prepare_inputs import good_rows, lines, picture, write_coco, write_records

from qwenft.core.errors import DataError, UsageError
from qwenft.core.files import sha256_of
from qwenft.core.samples import PreparedDataset
from qwenft.prepare import store as store_module
from qwenft.prepare.build import prepare_dataset
from qwenft.prepare.store import INDEX, WAITING, PictureStore


def prepare(source: Path, root: Path, **options: Any) -> PreparedDataset:
    return prepare_dataset(str(source), root=root, **options)


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file of a data set by its relative path, but README.md, which bears a mark of its place."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "README.md")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def mixed_source(folder: Path, count: int = 40) -> Path:
    """Rows that share pictures, and pictures that are missing, broken or not one."""
    rows = good_rows(folder, count)
    for number in range(0, count, 8):
        (folder / f"{number}.png").write_bytes((b"", b"<html>", picture(number)[:200])[number // 8 % 3])
        rows.append({**rows[number + 1], "expression": f"again {number}"})
        rows.append({**rows[number], "image": f"gone/{number}.png", "expression": f"gone {number}"})
    write_records(folder, rows)
    return folder


def test_several_processes_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    source = mixed_source(tmp_path / "set")
    one = prepare(source, tmp_path, out=Path("one/x"), command="-")
    three = prepare(source, tmp_path, out=Path("three/x"), command="-", num_proc=3)
    assert content_of(one.path) == content_of(three.path)
    assert one.manifest.counts["rejected"] == 10


def test_pictures_as_bytes_are_under_way_several_at_a_time_however_many_rows_each_has(tmp_path: Path) -> None:
    """Rows were counted once: with ten a picture the processes took turns."""
    pulled: list[int] = []

    def rows() -> Iterator[tuple[int, bytes]]:
        for number in range(200):
            pulled.append(number // 10)
            yield number, picture(number // 10)

    each = PictureStore(tmp_path / "two", num_proc=2).each(rows())
    first = next(each)
    assert len(set(pulled)) == 2 * WAITING + 1
    assert [first, *each] == list(PictureStore(tmp_path / "one").each(rows()))
    assert {p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*.png")} == {
        p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.png")
    }


def test_an_impossible_number_of_processes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--num-proc"):
        prepare(tmp_path / "nowhere", tmp_path, num_proc=0)


def test_a_killed_decoder_is_an_error_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_records(tmp_path / "set", good_rows(tmp_path / "set"))
    monkeypatch.setattr(store_module, "_start", _die)
    with pytest.raises(DataError, match="was killed") as caught:
        prepare(tmp_path / "set", tmp_path, num_proc=2)
    assert caught.value.hint == "--num-proc 1"


def _die(*_: Any) -> None:
    os._exit(9)


def refuse_to_decode(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = store_module.decode

    def counting(content: bytes) -> Any:
        calls.append(len(content))
        return original(content)

    monkeypatch.setattr(store_module, "decode", counting)
    return calls


def test_preparing_a_finished_set_again_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = mixed_source(tmp_path / "set")
    first = content_of(prepare(source, tmp_path, command="-").path)
    calls = refuse_to_decode(monkeypatch)
    again = prepare(source, tmp_path, command="-", overwrite=True)
    assert calls == []
    assert content_of(again.path) == first


def test_an_interrupted_set_goes_on_without_decoding_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = mixed_source(tmp_path / "set", 120)
    whole = content_of(prepare(source, tmp_path, out=Path("whole/set"), command="-").path)

    def stop(event: Any) -> None:
        if event.get("done") == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path, emit=stop)
    calls = refuse_to_decode(monkeypatch)
    events: list[Any] = []
    data = prepare(source, tmp_path, command="-", emit=events.append)
    distinct = 120
    assert 0 < len(calls) <= distinct - 100
    assert any("of an earlier prepare used again" in e.get("text", "") for e in events)
    assert content_of(data.path) == whole


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda index: index.write_text(index.read_text()[:-30]), id="torn last line"),
        pytest.param(lambda index: index.write_text('{"qwenft": "0", "pillow": "0"}\n'), id="another version"),
        pytest.param(lambda index: index.write_text("not JSON"), id="not JSON"),
        pytest.param(lambda index: index.write_bytes(b""), id="empty"),
        pytest.param(lambda index: index.unlink(), id="gone"),
    ],
)
def test_a_damaged_index_costs_time_and_nothing_else(tmp_path: Path, harm: Any) -> None:
    source = mixed_source(tmp_path / "set")
    data = prepare(source, tmp_path, command="-")
    first = content_of(data.path)
    harm(data.path / INDEX)
    assert content_of(prepare(source, tmp_path, command="-", overwrite=True).path) == first


def test_what_a_kill_left_of_an_index_or_a_picture_is_not_taken_over(tmp_path: Path) -> None:
    source = mixed_source(tmp_path / "set")
    first = content_of(prepare(source, tmp_path, command="-").path)
    images = tmp_path / "again" / ".set.partial" / "images"
    (images / "ab").mkdir(parents=True)
    for name in (".index.jsonl.x1y2", "ab/abcd.png.4711"):
        (images / name).write_bytes(b"torn")
    assert content_of(prepare(source, tmp_path, out=Path("again/set"), command="-").path) == first


def test_a_picture_that_was_changed_since_is_not_taken_for_the_one_stored(tmp_path: Path) -> None:
    source = mixed_source(tmp_path / "set")
    data = prepare(source, tmp_path, command="-")
    first = content_of(data.path)
    stored = next((data.path / "images").glob("*/*.png"))
    stored.write_bytes(b"x" * stored.stat().st_size)
    assert content_of(prepare(source, tmp_path, command="-", overwrite=True).path) == first


def test_an_index_cannot_name_a_file_outside(tmp_path: Path) -> None:
    source = mixed_source(tmp_path / "set")
    data = prepare(source, tmp_path, command="-")
    first = content_of(data.path)
    index = data.path / INDEX
    secret = tmp_path / "data" / sha256_of(b"secret")
    secret.write_bytes(b"secret")
    rows = lines(index)
    rows[1] |= {"image": f"images/../../{secret.name}"}
    index.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert content_of(prepare(source, tmp_path, command="-", overwrite=True).path) == first


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_full_disk_is_one_error_and_what_was_stored_is_used_when_there_is_room(tmp_path: Path, num_proc: int) -> None:
    source = mixed_source(tmp_path / "set", 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "_start", _start_on_a_small_disk)
        patch.setattr(store_module, "_write", _fail_after(10))
        with pytest.raises(DataError, match="cannot be made: No space left on device") as caught:
            prepare(source, tmp_path, num_proc=num_proc)
    assert "--out" in caught.value.hint and not (tmp_path / "data" / "set").exists()
    events: list[Any] = []
    assert prepare(source, tmp_path, emit=events.append).manifest.counts["rejected"] == 10
    assert any("of an earlier prepare used again" in event.get("text", "") for event in events)


def _fail_after(count: int) -> Any:
    left, write = [count], store_module._write

    def limited(path: Path, content: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    return limited


_start = store_module._start


def _start_on_a_small_disk(*folders: Any) -> None:
    store_module._write = _fail_after(5)
    _start(*folders)


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import pyarrow.parquet  # before the forks: its import is not what is to be killed
from qwenft.prepare.build import prepare_dataset

root, source = Path(sys.argv[1]), sys.argv[2]
draw = random.Random(7)

def child(out):
    pid = os.fork()
    if not pid:
        try:
            prepare_dataset(source, out=out, overwrite=True, command="-", preview=1)
        finally:
            os._exit(0)
    return pid

start = time.monotonic()
os.waitpid(child(root / "whole" / "set"), 0)
took = time.monotonic() - start
seen = set()
for number in range(20):
    out = root / "killed" / "set"
    pid = child(out)
    time.sleep(draw.uniform(0, took))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    seen.add("whole" if (out / "manifest.json").is_file() else "absent" if not out.exists() else "torn")
os.waitpid(child(root / "killed" / "set"), 0)
print(*sorted(seen))
"""


def test_kill_9_at_twenty_moments_leaves_the_whole_set_or_none_and_a_further_run_ends_equal(tmp_path: Path) -> None:
    source = mixed_source(tmp_path / "set", 60)
    command = [sys.executable, "-c", KILLS, tmp_path, source]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "torn" not in done.stdout.split() and "absent" in done.stdout.split()
    assert content_of(tmp_path / "killed" / "set") == content_of(tmp_path / "whole" / "set")
    assert not list((tmp_path / "killed").glob(".*"))


ORPHANS = """
import multiprocessing, sys, time
from pathlib import Path
from qwenft.prepare.build import prepare_dataset

def stop(event):
    if event.get("done") == 50:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(60)

if __name__ == "__main__":
    prepare_dataset(sys.argv[1], root=Path(sys.argv[2]), num_proc=2, emit=stop)
"""


def test_the_processes_of_a_killed_run_end_with_it(tmp_path: Path) -> None:
    source = mixed_source(tmp_path / "set", 160)
    (tmp_path / "run.py").write_text(ORPHANS)
    command = [sys.executable, tmp_path / "run.py", source, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        children = [psutil.Process(int(word)) for word in run.stdout.readline().split()]
        run.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert len(children) == 2
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []


def test_of_two_at_once_one_wins_and_the_other_says_so(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "set", 60)
    inside, leave = threading.Event(), threading.Event()

    def wait(event: Any) -> None:
        if event.get("done") == 50:
            inside.set()
            assert leave.wait(20)

    first = threading.Thread(target=lambda: prepare(source, tmp_path, emit=wait))
    first.start()
    try:
        assert inside.wait(20)
        with pytest.raises(DataError, match="another process is writing"):
            prepare(source, tmp_path)
    finally:
        leave.set()
        first.join()
    assert PreparedDataset.open(tmp_path / "data" / "set").manifest.counts["samples"] == 60
    with pytest.raises(DataError, match="exists already"):
        prepare(source, tmp_path)


def test_a_store_that_writes_nothing_still_decodes(tmp_path: Path) -> None:
    found = PictureStore(None).add(picture(1))
    assert found.image_wh == (160, 120) and not list(tmp_path.iterdir())


def test_a_local_table_is_read_whichever_hub_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    box = [99, 80, 120, 99]
    rows = [{"image": {"bytes": picture(n), "path": None}, "question": "q", "bbox": box} for n in range(9)]
    (tmp_path / "set").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set" / "train.parquet")
    assert prepare(tmp_path / "set", tmp_path, bbox_format="xyxy").manifest.counts["samples"] == 9
