"""What a command shows: bars on a terminal that leave no trace, plain lines elsewhere, one object with --json."""

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from play_events import PATH
from rich.console import Console
from terminal import colours, controls, on_terminal, plain, screen

from qwenft.core.events import PlainLines, note, progress
from qwenft.core.predictions import Detected, Prediction, Question
from qwenft.ui import Screen, _wrapped

PLAY = [sys.executable, str(Path(__file__).parent / "play_events.py")]
PEOPLE, JSON = [*PLAY, "people"], [*PLAY, "json"]

PLAN = """\
devices      cuda:0 = GPU 3 (NVIDIA H100)
data         dogs, split train: 80 samples, 40 pictures
             1 of them asks for something that is not in the picture
model        tiny, 4.8 M parameters
LoRA         language 42 modules; 175,104 trainable (3.62%)
batch        4 x 1 device x 2 accumulation = 8
updates      ceil(ceil(80 / 4) / 2) x 1 = 10
image tokens 28 min, 30 median, 36 max
memory       about 0.09 GiB a device (float32 weights)
evaluations  at step 0, 10
checkpoints  at step 10
"""
TERMINAL = f"""\
run          {PATH}
{PLAN}\
measured base model: Acc@0.5 0.250, parse rate 1.000 (6 held-out samples, 2.0 s)
measured step 10: Acc@0.5 0.500, parse rate 1.000 (6 held-out samples, 2.0 s)
adapter of step 10 kept
checkpoint of step 10
finished: 10 updates in 12.0 s; Acc@0.5 0.250 -> 0.500 (step 10)
warning: xyxy: 68 of 68 boxes fit
  xywh is refuted by 58, e.g. line 1: [20, 213, 81, 285]
run          {PATH}
adapter      {PATH}/adapter
scores
╭─────────┬───────┬─────────╮
│ figure  │  base │ adapter │
├─────────┼───────┼─────────┤
│ Acc@0.5 │ 0.250 │   0.500 │
│ [bold]x │       │   1.000 │
╰─────────┴───────┴─────────╯
next: qwenft eval --run first --baseline
error: there is no run 'frist'
try: did you mean 'first'?
"""
STEPS = "".join(
    f"step {n}/10  epoch {n / 10:.2f}  loss {4 - n / 10:.4f}  lr 1.00e-04  grad norm 1.5000  30.0 samples/s  1.25 GiB\n"
    for n in range(1, 11)
)
EVENT_LINES = f"""\
loading torch and transformers
run first: {PATH}
{PLAN}\
fetch: 1.50 GB of 7.50 GB
fetch: 7.50 GB of 7.50 GB
measured base model: Acc@0.5 0.250, parse rate 1.000 (6 held-out samples, 2.0 s)
{STEPS}\
measured step 10: Acc@0.5 0.500, parse rate 1.000 (6 held-out samples, 2.0 s)
adapter of step 10: {PATH}/adapter
checkpoint: {PATH}/checkpoints/step-10
finished: 10 updates in 12.0 s; Acc@0.5 0.250 -> 0.500 (step 10)
warning: xyxy: 68 of 68 boxes fit; xywh is refuted by 58, e.g. line 1: [20, 213, 81, 285]
"""
DATA = f"run\t{PATH}\nadapter\t{PATH}/adapter\nfigure\tbase\tadapter\nAcc@0.5\t0.250\t0.500\n[bold]x\t\t1.000\n"
LAST = "next: qwenft eval --run first --baseline\nerror: there is no run 'frist'\ntry: did you mean 'first'?\n"


def test_one_sequence_reads_alike_on_a_terminal_off_it_and_with_json(tmp_path: Path) -> None:
    shown = on_terminal(PEOPLE, tmp_path)
    assert shown.end() == 0
    assert "\n".join(screen(shown.text)) == TERMINAL

    assert plain(PEOPLE, tmp_path) == (0, DATA.encode(), (EVENT_LINES + LAST).encode())

    status, out, err = plain(JSON, tmp_path)
    assert (status, err.decode()) == (0, EVENT_LINES)
    assert out.count(b"\n") == 1
    assert json.loads(out) == {"run": "first", "label": "红 dog é", "path": PATH}


def test_a_log_of_both_streams_has_no_control_character_and_the_order_of_the_screen(tmp_path: Path) -> None:
    _, log, _ = plain(PEOPLE, tmp_path, together=True)
    assert controls(log) == []
    assert log.decode() == EVENT_LINES + DATA + LAST


@pytest.mark.parametrize("columns", [40, 80])
def test_the_bar_moves_stays_on_its_row_and_is_erased(tmp_path: Path, columns: int) -> None:
    shown = on_terminal(PEOPLE, tmp_path, columns=columns)
    assert shown.end() == 0
    for word in ("loading torch and transformers", "loading the model", "1.50 GB/7.50 GB", "finishing"):
        assert word in shown.text, word
    rows = set(re.findall(r"(?:training|measuring) .*?(?=\x1b\[\?|\r|\x1b\[2K|\n)", shown.text))
    plain_rows = [re.sub(r"\x1b\[[0-9;]*m", "", row) for row in rows]
    assert len(plain_rows) > 3, "it did not move"
    assert all(len(row) <= columns for row in plain_rows), "a row that the terminal wraps cannot be erased"
    left = screen(shown.text, columns)
    assert not [line for line in left if "━" in line or "⠋" in line or line.startswith(("training", "loading"))]
    assert shown.text.rfind("\x1b[?25h") > shown.text.rfind("\x1b[?25l"), "the cursor stays hidden"


def test_a_path_is_never_cut_in_a_narrow_window(tmp_path: Path) -> None:
    shown = on_terminal(PEOPLE, tmp_path, columns=40)
    shown.end()
    assert shown.text.count(f"{PATH}/adapter\r\n") == 1
    assert shown.text.count(f"{PATH}\r\n") == 2


def test_no_color_and_a_dumb_terminal_are_heeded(tmp_path: Path) -> None:
    coloured, grey, dumb = (
        on_terminal(PEOPLE, tmp_path),
        on_terminal(PEOPLE, tmp_path, NO_COLOR="1"),
        on_terminal(PEOPLE, tmp_path, TERM="dumb"),
    )
    assert [shown.end() for shown in (coloured, grey, dumb)] == [0, 0, 0]
    assert colours(coloured.text)
    assert "measured" in grey.text
    assert not colours(grey.text)
    assert "measured" in dumb.text
    assert "\x1b" not in dumb.text


def test_json_stays_json_where_the_console_cannot_show_the_text(tmp_path: Path) -> None:
    _, out, _ = plain(JSON, tmp_path, PYTHONUTF8="0", PYTHONIOENCODING="ascii:strict")
    assert out.isascii()
    assert json.loads(out)["label"] == "红 dog é"


def test_plain_lines_come_each_tenth_or_each_half_minute() -> None:
    now = 0.0
    lines = PlainLines(clock=lambda: now)
    said = []
    for done in range(1, 1001):
        now += 0.01
        said += lines.lines(progress("questions", done, 1000))
    assert said == [f"questions: {n:,} of 1,000" for n in (1, *range(101, 1000, 100), 1000)]
    now += 31
    assert lines.lines(progress("reading rows", 5, None)) == ["reading rows: 5"]
    assert lines.lines(progress("reading rows", 6, None)) == []
    now += 31
    assert lines.lines(progress("reading rows", 7, None)) == ["reading rows: 7"]


WORDS = st.lists(st.text("abc;[/", min_size=1, max_size=30), min_size=1, max_size=30).map(" ".join)
CELLS = st.lists(st.text("abcdefgh012", min_size=1, max_size=12), max_size=3).map(" ".join)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=4), st.integers(36, 90))
def test_a_table_breaks_no_word_where_leaving_out_a_spare_column_helps(
    rows: list[tuple[str, str, str]], width: int
) -> None:
    shown = Screen()
    shown.out = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    shown.table("", ("run", "state", "model"), rows, spare=("model",))
    drawn = shown.out.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, drawn.splitlines())) <= width
    words = re.findall(r"[a-h012]+", drawn)
    left = 3 if "model" in drawn else 2
    assert left == 3 or width < 3 * 12 + 10, "nothing is left out without need"
    for row in rows:
        for cell in row[:left]:
            assert all(word in words for word in cell.split())


@given(WORDS, st.integers(20, 120))
def test_wrapping_loses_no_word_and_cuts_none(text: str, width: int) -> None:
    lines = _wrapped(text, width, 0, 2)
    assert " ".join(lines).replace(";", " ").split() == text.replace(";", " ").split()
    assert all(len(line) <= width or len(line.split()) == 1 for line in lines)


def test_a_strangers_text_cannot_speak_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "dog\x1b[2J\x07"
    screen = Screen()
    screen.emit(note(f"label {evil}"))
    screen.table("", ("picture", "label"), [("a.jpg", evil)])
    said = capsys.readouterr()
    assert "dog\\x1b[2J" in said.out
    assert "dog\\x1b[2J" in said.err
    assert "\x1b" not in said.out + said.err


def test_answers_are_shown_as_they_come_and_what_strangers_wrote_is_harmless(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown: list[str] = []

    def found() -> Iterator[Prediction]:
        question = Question(Path("a/dog.png"), "grounding", "dog")
        box = Detected((1.0, 2.0, 3.5, 4.0), "a\x1b[31m\tdog", 0.5)
        yield Prediction(question, "ok", (box,), text="…", prompt="")
        shown.append(capsys.readouterr().out)
        yield Prediction(question, "empty", (), text="[]", prompt="")
        shown.append(capsys.readouterr().out)
        yield Prediction(question, "unparsable", (), text="no\nidea", prompt="", how="no number in it")

    Screen().answers(found())
    assert shown[0] == (
        "picture\tlabel\tx1 y1 x2 y2 (px)\tscore\tstatus\ndog.png\ta\\x1b[31m\\tdog\t1.0 2.0 3.5 4.0\t0.500\tok\n"
    )
    assert shown[1] == "dog.png\t\tnone\t\tempty\n"
    assert capsys.readouterr().out == "dog.png\tno idea\t\t\tunparsable: no number in it\n"
