"""The only file that imports rich: events become bars on a terminal and plain lines elsewhere."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from qwenft.core.errors import QwenftError
from qwenft.core.events import Event, PlainLines, eval_text, finished_text, plan_rows
from qwenft.core.files import to_line

SMOOTHING = 0.9
"""Of the loss that the bar shows."""


class Screen:
    """Where a command's words go: data to stdout, everything else to stderr; a live bar if stderr is a terminal."""

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        self.err = Console(stderr=True, highlight=False)
        self.out = Console(highlight=False)
        self._live = self.err.is_terminal
        self._plain = PlainLines()
        self._bar: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._total = 0
        self._loss: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._erase()

    def emit(self, event: Event) -> None:
        """Show an event; the callback that every command's body takes."""
        if not self._live:
            for line in self._plain.lines(event):
                self._write(line)
            return
        kind = event["event"]
        if kind == "progress":
            self._advance(event["what"], event["done"], event["total"], "")
        elif kind == "step":
            self._step(event)
        else:
            self._said(kind, event)

    def _said(self, kind: str, event: Event) -> None:
        """Everything that is a line or a table above the bar."""
        if kind == "plan":
            self._total = event["updates"]["total"]
            self.err.print(_pairs(plan_rows(event)))
        elif kind == "warning":
            self.err.print(f"[yellow]warning[/] {escape(event['text'])}")
        elif kind == "eval":
            self._drop("questions")
            self.err.print(f"[cyan]measured[/] {escape(eval_text(event))}")
        elif kind == "finished":
            self._erase()
            self.err.print(f"[green]{escape(finished_text(event))}[/]")
        elif kind == "stage":
            self._erase()
            self.err.print(f"\n[bold]{event['number']}/{event['total']}  {escape(event['title'])}[/]")
            if event["command"]:
                self.err.print(Text(f"  $ {event['command']}", style="dim"))
        else:
            for line in self._plain.lines(event):
                self.err.print(Text(line, style="" if kind in ("note", "run", "stopped") else "dim"))

    def _step(self, event: Event) -> None:
        loss = event["loss"]
        if isinstance(loss, float):
            self._loss = loss if self._loss is None else SMOOTHING * self._loss + (1 - SMOOTHING) * loss
        facts = [
            f"loss {self._loss:.3f}" if self._loss is not None else f"loss {loss}",
            f"{event['samples_per_s']:.1f} samples/s",
            f"lr {event['learning_rate']:.1e}",
            f"epoch {event['epoch']:.2f}",
            f"{event['memory_gib']:.1f} GiB",
        ]
        room = max(0, self.err.width - 58)
        shown = ""
        for fact in facts:
            if len(shown) + len(fact) + 2 > room:
                break
            shown += f"  {fact}"
        self._advance("training", event["step"], self._total, shown.strip())

    def _advance(self, what: str, done: int, total: int | None, facts: str) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=18),
                MofNCompleteColumn(),
                _Remaining(),
                TextColumn("{task.fields[facts]}", style="dim"),
                console=self.err,
                transient=True,
            )
            self._bar.start()
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(escape(what), total=total, facts=facts)
        self._bar.update(self._tasks[what], completed=done, total=total, facts=facts)
        if what != "training" and total is not None and done >= total:
            self._drop(what)

    def _drop(self, what: str) -> None:
        task = self._tasks.pop(what, None)
        if self._bar is not None and task is not None:
            self._bar.remove_task(task)
            if not self._tasks:
                self._erase()

    def _erase(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = None
        self._tasks.clear()

    def result(self, value: Mapping[str, Any]) -> None:
        """With --json: the one object on stdout."""
        self._erase()
        sys.stdout.write(to_line(dict(value)) + "\n")
        sys.stdout.flush()

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table of data on stdout: drawn on a terminal, else one line a row with tabs between the cells."""
        self._erase()
        if not self.out.is_terminal:
            sys.stdout.write("".join("\t".join(cells) + "\n" for cells in [columns, *rows]))
            return
        drawn = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
        for number, column in enumerate(columns):
            drawn.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
        for row in rows:
            drawn.add_row(*(escape(cell) for cell in row))
        self.out.print(drawn)

    def hint(self, text: str) -> None:
        """The literal next command to type."""
        self._erase()
        if self._live:
            self.err.print(Text.assemble(("next: ", "dim"), (text, "bold")))
        else:
            self._write(f"next: {text}")

    def error(self, error: QwenftError) -> None:
        """Message and hint."""
        self._erase()
        if self._live:
            self.err.print(Text.assemble(("error: ", "bold red"), str(error)))
            if error.hint:
                self.err.print(Text.assemble(("try: ", "dim"), error.hint))
        else:
            self._write(f"error: {error}")
            if error.hint:
                self._write(f"try: {error.hint}")

    def _write(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


class _Remaining(ProgressColumn):
    """Time left, once there is something to count it from."""

    def __init__(self) -> None:
        super().__init__()
        self._inner = TimeRemainingColumn(compact=True)

    def render(self, task: Task) -> Text:
        """Nothing while the total is unknown."""
        return self._inner.render(task) if task.total else Text("")


def _pairs(rows: Iterable[tuple[str, str]]) -> Table:
    """Two columns without lines."""
    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(style="dim", no_wrap=True)
    drawn.add_column(overflow="fold")
    for what, value in rows:
        drawn.add_row(what, escape(value))
    return drawn
