"""What waits on the disk comes back as it was, and memory does not grow with the rows of a data set."""

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prepare_inputs import good_rows, write_records

from qwenft.core.samples import Sample, SceneObject
from qwenft.prepare import build
from qwenft.prepare.rows import BadRow, RawBox, RawRow, Reason
from qwenft.prepare.sources.cocofile import Annotations, Original
from qwenft.prepare.spool import AT_ONCE, Ledger, Rejected, Samples, Spool, tally


def sample(number: int) -> Sample:
    boxes = tuple(SceneObject((n, 0.0, n + 9.5, 9.0), "cup", crowd=n == 1) for n in range(number % 3))
    return Sample(
        f"set/train/{number}", "grounding", f"images/ab/{number // 4}.png", 160, 120, f"thing {number}", boxes
    )


@pytest.mark.parametrize("count", [0, 1, AT_ONCE, 2 * AT_ONCE + 7])
def test_a_spool_is_the_sequence_that_was_added(tmp_path: Path, count: int) -> None:
    expected = [sample(number) for number in range(count)]
    found = Samples(tmp_path, expected)
    assert len(found) == count and list(found) == expected
    assert found[count // 3 : count : 5] == expected[count // 3 : count : 5]
    assert [found[number] for number in (0, -1) if count] == [expected[number] for number in (0, -1) if count]
    with pytest.raises(IndexError):
        found[count]
    one, other = iter(found), iter(found)
    assert [(next(one), next(other)) for _ in range(count)] == [(item, item) for item in expected]
    assert found.tally == tally(expected) and list(found.tally.images) == list(dict.fromkeys(s.image for s in expected))
    assert not list(tmp_path.iterdir())  # the file has no name


def test_a_row_comes_back_with_everything_and_an_annotation_without_the_others_of_its_file() -> None:
    annotations = Annotations()
    for number in range(1000):
        annotations.add({"id": number, "image_id": 3, "category_id": 1, "bbox": [1, 2, 3, 4]})
    box = RawBox((1.0, float("inf"), 3.0, 4.0), "\ud83d", True, "annotation 7", Original(annotations, 7))
    row = RawRow(
        "train", "line 7", b"", "detection", {"a": [{"b": None}]}, "7", (160, 120), None, (box,), around=(box,)
    )
    (found,) = Spool(None, [row] * (AT_ONCE + 1))[:1]
    assert found == row and found.boxes[0].original == annotations.original(7)
    assert type(found.boxes[0].original) is dict


def test_what_is_rejected_is_counted_by_reason_and_the_first_of_each_is_at_hand() -> None:
    bad = [BadRow("train", f"line {n}", (Reason.BOX_FLAT, Reason.QUERY_EMPTY)[n % 3 == 0], "", {}) for n in range(9)]
    found = Rejected(None, bad)
    assert found.reasons == {Reason.BOX_FLAT: 6, Reason.QUERY_EMPTY: 3}
    assert list(found.examples.values()) == bad[:2] and list(found) == bad


@given(st.lists(st.tuples(st.text(st.characters(), max_size=2), st.text(max_size=3)), max_size=30))
def test_a_ledger_keeps_what_came_first(pairs: list[tuple[str, str]]) -> None:
    ledger, first = Ledger(), dict[str, str]()
    for key, text in pairs:
        value = text.encode(errors="replace").decode()
        assert ledger.keep(key, value=value) == first.get(key)
        first.setdefault(key, value)


def test_a_row_more_costs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a row more than 2 kB were once kept.  One picture, so that only rows are counted."""
    (row,) = good_rows(tmp_path / "set", 1)
    peaks = {}
    monkeypatch.setattr(build, "write_card", lambda *_: None)  # it holds a hundred rows, however many there are
    for count in (9, AT_ONCE, 3 * AT_ONCE):  # the first imports what is needed
        asked = [{**row, "expression": f"thing {number}", "id": str(number)} for number in range(count)]
        source = write_records(tmp_path / "set", asked)
        del asked
        tracemalloc.start()
        build.prepare_dataset(str(source), root=tmp_path, out=Path(f"{count}"), preview=0)
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (peaks[3 * AT_ONCE] - peaks[AT_ONCE]) / (2 * AT_ONCE) < 200
