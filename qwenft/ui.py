"""The only file that imports rich: events become bars on a terminal and plain lines elsewhere."""

import json
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from qwenft.core.errors import QwenftError
from qwenft.core.events import (
    Event,
    PlainLines,
    amount,
    duration,
    eval_text,
    finished_text,
    plan_rows,
    printable,
    warning,
)
from qwenft.core.files import to_line
from qwenft.core.predictions import Prediction
from qwenft.core.samples import PreparedDataset
from qwenft.evaluate.table import figure_name, number, score_rows, with_interval

SMOOTHING: Final = 0.9
"""Of the loss that the bar shows."""
BAR: Final = 18
NARROW: Final = 60
"""Columns under which the bar is short."""
NUMERIC: Final = re.compile(r"[+-]?[\d.,]+( [\d. ]+| \[.*\])?|none|not measured|")
WORKING: Final = "working"
ANSWER_COLUMNS: Final = ("picture", "label", "x1 y1 x2 y2 (px)", "score", "status")
SAID: Final = 160
"""Characters that are shown of an answer that could not be read."""
CAPTION_COLUMNS: Final = ("picture", "text", "status")


class Screen:
    """Where a command's words go: data to stdout, everything else to stderr; a live row if stderr is a terminal."""

    def __init__(self) -> None:
        self.err = Console(stderr=True, highlight=False)
        self.out = Console(highlight=False)
        self._live = self.err.is_terminal and not self.err.is_dumb_terminal
        self._plain = PlainLines()
        self._bars: _Bars | None = None
        self._tasks: dict[str, Any] = {}
        self._plan: Event = {"updates": {"total": 0}, "evaluations": []}
        self._loss: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._erase()

    def wait(self, text: str) -> None:
        """On a terminal: a spinner that says what is being done, until something is counted."""
        if self._live:
            self._below().wait(text)

    def emit(self, event: Event) -> None:
        """Show an event; the callback that every command's body takes."""
        if not self._live:
            for line in self._plain.lines(event):
                self._write(line)
            return
        kind = event["event"]
        if kind == "progress":
            self._advance(event["what"], event["done"], event["total"])
        elif kind == "step":
            self._step(event)
        else:
            self._said(kind, event)

    def _said(self, kind: str, event: Event) -> None:
        """Everything that is a line or a table above the live row, or a word beside the spinner."""
        special: Mapping[str, Callable[[Event], None]] = {
            "plan": self._planned, "eval": self._measured, "finished": self._finished, "stage": self._stage,
        }  # fmt: skip
        if kind in special:
            special[kind](event)
        elif kind == "waiting":
            self.wait(event["text"])
        elif kind == "run":
            self._say(event["path"], "run".ljust(13), "dim", whole=True)
        elif kind == "warning":
            self._say(event["text"], "warning: ", "yellow")
        elif kind == "checkpoint":
            self._say(f"checkpoint of step {event['step']}", style="dim")
        elif kind == "adapter":
            self._say(f"adapter of step {event['step']} kept", style="dim")
        else:
            for line in self._plain.lines(event):
                self._say(line)

    def _planned(self, event: Event) -> None:
        self._plan = event
        self.err.print(_grid(plan_rows(event)))
        self.wait("loading the model" + (", then measuring it as it is" if event["evaluations"] else ""))

    def _measured(self, event: Event) -> None:
        self._drop("questions")
        self._say(eval_text(event), "measured ", "cyan")
        if "training" in self._tasks:
            self._below().update(self._tasks["training"], description="training")
        else:
            self.wait("starting to train")

    def _finished(self, event: Event) -> None:
        self._drop("training")
        self._say(finished_text(event), style="green")
        self.wait("finishing")

    def _stage(self, event: Event) -> None:
        self._erase()
        self._say(f"\n{event['number']}/{event['total']}  {event['title']}", style="bold")
        if event["command"]:
            self._say(event["command"], "  $ ", "dim", style="dim", indent=4)
        self.wait(WORKING)

    def _step(self, event: Event) -> None:
        loss = event["loss"]
        if isinstance(loss, float):
            self._loss = loss if self._loss is None else SMOOTHING * self._loss + (1 - SMOOTHING) * loss
        facts = (
            f"loss {self._loss:.3f}" if self._loss is not None else f"loss {loss}",
            f"{event['samples_per_s']:.1f} samples/s",
            f"lr {event['learning_rate']:.1e}",
            f"epoch {event['epoch']:.2f}",
            f"{event['memory_gib']:.1f} GiB",
        )
        self._advance("training", event["step"], self._plan["updates"]["total"], facts)
        if event["step"] in self._plan["evaluations"]:
            self._below().update(self._tasks["training"], description="measuring")

    def _advance(self, what: str, done: int, total: int | None, facts: tuple[str, ...] = ()) -> None:
        bars = self._below()
        if what not in self._tasks:
            self._tasks[what] = bars.add_task(what, total=total, facts=facts, kind=what)
        bars.update(self._tasks[what], description=what, completed=done, total=total, facts=facts)
        if what != "training" and total is not None and done >= total:
            self._drop(what)
            bars.wait(WORKING)

    def _below(self) -> "_Bars":
        """The live row below the lines; it begins when it is first needed."""
        if self._bars is None:
            self._bars = _Bars(self.err, redirect_stdout=self.out.is_terminal)
            self._bars.start()
        return self._bars

    def _drop(self, what: str) -> None:
        task = self._tasks.pop(what, None)
        if self._bars is not None and task is not None:
            self._bars.remove_task(task)

    def _erase(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = None
        self._tasks.clear()

    def result(self, value: Mapping[str, Any]) -> None:
        """With --json: the one object on stdout."""
        self._erase()
        line = to_line(dict(value))
        try:
            line.encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:  # a console that is not UTF-8, or a file's name that is no text
            line = json.dumps(value)
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    def table(
        self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, spare: Sequence[str] = ()
    ) -> None:
        """A table of data on stdout: drawn on a terminal, else one line a row with tabs between the cells.

        spare: columns that a terminal too narrow for whole words does without, the first one first.
        """
        self._erase()
        cells = [tuple(printable(cell) for cell in row) for row in rows]
        if not self.out.is_terminal:
            self._write_rows([columns, *cells])
            return
        columns, cells = _narrowed(columns, cells, spare, self.out.width)
        widths = _column_widths(columns, cells, self.out.width)
        drawn = Table(header_style="bold", box=box.ROUNDED)
        for at, column in enumerate(columns):
            numeric = all(NUMERIC.fullmatch(row[at]) for row in cells)
            drawn.add_column(column, justify="right" if numeric else "left", overflow="fold", width=widths[at])
        for row in cells:
            drawn.add_row(*(Text(cell) for cell in row))
        if title:
            self.out.print(Text(title, "bold"), soft_wrap=True)
        self.out.print(drawn)

    def dataset(self, made: PreparedDataset) -> None:
        """What `prepare` made, and whether something was left out."""
        rows = [
            (name, info.role, f"{info.samples:,}", f"{info.pictures:,}", ", ".join(info.tasks))
            for name, info in made.manifest.splits.items()
        ]
        self.table(str(made.path), ("split", "role", "samples", "pictures", "task"), rows)
        rejected = made.manifest.counts.get("rejected", 0) + made.manifest.counts.get("objects_rejected", 0)
        if rejected:
            self.emit(warning(f"{rejected:,} not taken: {made.path / 'rejected.jsonl'} says why"))

    def answers(self, found: Iterable[Prediction]) -> None:
        """What `predict` finds, as it is found: a row a box, or a row a caption; columns only grow."""
        widths: list[int] = []
        for answer in found:
            caption = answer.question.task == "caption"
            if not widths:
                columns = CAPTION_COLUMNS if caption else ANSWER_COLUMNS
                widths = [len(column) for column in columns]
                self._row(columns, widths, "bold")
            for cells in _answer_cells(answer, caption=len(widths) == len(CAPTION_COLUMNS)):
                self._row(cells, widths)

    def _row(self, cells: Sequence[str], widths: list[int], style: str = "") -> None:
        """One row above the live one: padded on a terminal, with tabs between the cells elsewhere."""
        if not self.out.is_terminal:
            self._write_rows([cells])
            return
        shown = [printable(cell.replace("\n", " ")) for cell in cells]
        widths[:] = [max(width, cell_len(cell)) for width, cell in zip(widths, shown, strict=True)]
        padded = [f"{cell}{' ' * (width - cell_len(cell))}" for cell, width in zip(shown, widths, strict=True)]
        above = self.out if self._bars is None else self.err  # the live row's own console, else it is written over
        above.print(Text("  ".join(padded).rstrip(), style), soft_wrap=True)

    def scores(self, metrics: Mapping[str, Any]) -> None:
        """What `eval` measured; on a terminal a task that all rows share stands once, above them."""
        columns, rows = score_rows(metrics)
        tasks = {row[0].partition(" ")[0] for row in rows}
        title = tasks.pop() if len(tasks) == 1 and self.out.is_terminal else ""
        self.table(title, columns, [[row[0].removeprefix(f"{title} "), *row[1:]] for row in rows])

    def comparison(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """The demo's result: base and adapter beside a box that looks at no picture."""
        columns = ("held out", "constant box", "base", "adapter", "difference, 95 % interval")
        cells = [
            (
                figure_name(row["figure"]),
                *(number(row[who]) for who in ("constant_box", "base", "adapter")),
                with_interval(row["difference"]),
            )
            for row in rows
        ]
        self.table("", columns, cells)

    def facts(self, rows: Sequence[tuple[str, str]]) -> None:
        """What stands where, on stdout: a path is never cut, so that it can be copied."""
        self._erase()
        if not self.out.is_terminal:
            self._write_rows(rows)
            return
        for what, value in rows:
            self.out.print(Text.assemble((what.ljust(13), "dim"), value), soft_wrap=True)

    def hint(self, text: str) -> None:
        """The literal next command to type."""
        self._erase()
        self._say(text, "next: ", "dim", style="bold", whole=True)

    def error(self, error: QwenftError) -> None:
        """Message and hint."""
        self._erase()
        self._say(str(error), "error: ", "bold red")
        if error.hint:
            self._say(error.hint, "try: ", "dim", whole=True)

    def _say(
        self,
        text: str,
        label: str = "",
        label_style: str = "",
        *,
        style: str = "",
        indent: int = 2,
        whole: bool = False,
    ) -> None:
        """Lines on stderr; on a terminal wrapped at words only.  whole: not at all, so that it can be copied."""
        if not self._live:
            self._write(label + text)
            return
        lines = text.split("\n") if whole else _wrapped(text, self.err.width, len(label), indent)
        self.err.print(Text.assemble((label, label_style), ("\n".join(lines), style)), soft_wrap=True)

    def _write_rows(self, rows: Iterable[Sequence[str]]) -> None:
        sys.stdout.write(
            "".join("\t".join(" ".join(printable(cell).split()) for cell in cells) + "\n" for cells in rows)
        )
        sys.stdout.flush()  # in one log with stderr the order is that of the screen

    def _write(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _wrapped(text: str, width: int, label: int, indent: int) -> list[str]:
    """Lines of at most `width` columns, longer words whole; the parts of a long line, after "; ", stand below it."""
    room = max(20, width - label)
    wrap = textwrap.TextWrapper(
        room, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False, replace_whitespace=False
    )
    lines: list[str] = []
    for line in text.split("\n"):
        head, *rest = [line] if len(line) <= room else line.split("; ")
        for part in (head, *(" " * indent + part for part in rest)):
            lines += wrap.wrap(part) or [part]
    return lines


class _Bars(Progress):
    """A row a stage; while nothing is counted, a spinner says what is waited for."""

    def __init__(self, console: Console, *, redirect_stdout: bool) -> None:
        self._console = console
        self._waiting: tuple[str, float] | None = None
        self._spinner = Spinner("dots", style="cyan")
        self._bar = BarColumn(bar_width=BAR)
        super().__init__(
            TextColumn("{task.description}", markup=False), self._bar, _Numbers(), _Facts(console),
            console=console, transient=True, redirect_stdout=redirect_stdout, speed_estimate_period=600,
        )  # fmt: skip

    def wait(self, text: str) -> None:
        self._waiting = (text, time.monotonic())
        self.refresh()

    def get_renderables(self) -> Iterable[RenderableType]:
        """Rows, or the spinner with the seconds waited so far."""
        width = self._console.width  # `console` of the base class is not there yet at the first call
        self._bar.bar_width = BAR if width >= NARROW else BAR // 3
        if self.tasks:
            yield self.make_tasks_table(self.tasks)
        elif self._waiting:
            text, since = self._waiting
            shown = Text.assemble(text, (f"  {time.monotonic() - since:.0f} s", "dim"))
            shown.truncate(width - 3, overflow="ellipsis")
            self._spinner.update(text=shown)
            yield self._spinner


def _numbers(task: Task) -> str:
    """How much is done and how long the rest takes, once there is something to count it from."""
    kind, left = task.fields["kind"], task.time_remaining
    done, total = amount(kind, int(task.completed)), amount(kind, int(task.total)) if task.total else ""
    counted = f"{done:>{len(total)}}/{total}" if total else done
    return counted if left is None or not total else f"{counted}  {duration(left)} left"


class _Numbers(ProgressColumn):
    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """As many as there are of both."""
        return Text(_numbers(task), no_wrap=True)


class _Facts(ProgressColumn):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: Task) -> Text:
        """As many facts as the row has room for: a row that wraps cannot be erased."""
        width = self._console.width
        room = width - len(task.description) - (BAR if width >= NARROW else BAR // 3) - len(_numbers(task)) - 4
        shown = ""
        for fact in task.fields["facts"]:
            if len(shown) + len(fact) + 2 > room:
                break
            shown += f" {fact} "
        return Text(shown.rstrip(), style="dim", no_wrap=True)


def _answer_cells(answer: Prediction, *, caption: bool) -> Iterator[tuple[str, ...]]:
    """The rows of one answer; what could not be read as boxes is shown as it was said."""
    name = answer.question.name or answer.question.image.name
    status = f"{answer.status}: {answer.how}" if answer.how else answer.status
    if caption:
        yield (name, answer.text, status)
        return
    for item in answer.objects:
        score = "" if item.score is None else f"{item.score:.3f}"
        yield (name, item.label, " ".join(f"{v:.1f}" for v in item.box_xyxy), score, status)
    if not answer.objects:
        said = textwrap.shorten(answer.text, SAID, placeholder=" …") if answer.status == "unparsable" else ""
        yield (name, said, "none" if answer.status == "empty" else "", "", status)


def _narrowed(
    columns: Sequence[str], rows: Sequence[tuple[str, ...]], spare: Sequence[str], width: int
) -> tuple[list[str], list[tuple[str, ...]]]:
    """The same table without as many of the spare columns as it takes to break no word at this width."""
    kept = list(range(len(columns)))
    for name in spare:
        if sum(_longest_words([columns[at] for at in kept], [[row[at] for at in kept] for row in rows])) < width:
            break
        kept.remove(columns.index(name))
    return [columns[at] for at in kept], [tuple(row[at] for at in kept) for row in rows]


FRAME: Final = 3
"""Of a drawn table, around each cell: a blank on either side, and a line."""


def _column_widths(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Sequence[int | None]:
    """Columns wide enough for their words, the first ones as wide as their cells; None where not even words fit."""
    least = [wide - FRAME for wide in _longest_words(columns, rows)]
    room = width - 1 - sum(wide + FRAME for wide in least)
    if room < 0:
        return [None] * len(columns)
    widths: list[int | None] = []
    for wide, cells in zip(least, zip(columns, *rows, strict=True), strict=True):
        extra = min(room, max(cell_len(line) for cell in cells for line in cell.split("\n")) - wide)
        room -= extra
        widths.append(wide + extra)
    return widths


def _longest_words(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Columns of the terminal that each column of a drawn table takes at the least."""
    words = [[word for cell in cells for word in cell.split()] for cells in zip(columns, *rows, strict=True)]
    return [max((cell_len(word) for word in column), default=0) + FRAME for column in words]


def _grid(rows: Iterable[tuple[str, str]]) -> Table:
    """Two columns without lines."""
    drawn = Table.grid(padding=(0, 1))
    drawn.add_column(style="dim", no_wrap=True, min_width=12)
    drawn.add_column(overflow="fold")
    for what, value in rows:
        drawn.add_row(what, Text(value))
    return drawn
