"""What a command's body tells its caller while it works: events, and their plain lines."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Event = Mapping[str, Any]
"""One thing that happened: `event` names its kind, the other keys are its own."""
Emit = Callable[[Event], None]
"""How a body reports: it calls this and draws nothing itself."""


def ignore(event: Event) -> None:
    """Report to nobody: the default when a body is called from Python."""


def progress(what: str, done: int, total: int | None) -> Event:
    """So much of a stage is done; the last one has done == total.  total None: not known."""
    return {"event": "progress", "what": what, "done": done, "total": total}


def printable(text: str) -> str:
    """The text without what a terminal would obey: names and labels come from strangers.

    >>> printable("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def note(text: str) -> Event:
    """Something worth saying aloud."""
    return {"event": "note", "text": printable(text)}


def warning(text: str) -> Event:
    """Something that the user should look at, though the work goes on."""
    return {"event": "warning", "text": printable(text)}


def waiting(text: str) -> Event:
    """Something begins that takes seconds and reports nothing."""
    return {"event": "waiting", "text": text}


BYTES = "fetch"
"""The stage that counts bytes; every other one counts things."""


def amount(what: str, number: int) -> str:
    """A count of a stage for people.

    >>> amount("questions", 4896), amount("fetch", 7_512_000_000), amount("fetch", 48_000)
    ('4,896', '7.51 GB', '0.0 MB')
    """
    if what != BYTES:
        return f"{number:,}"
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """A time as a clock shows it.

    >>> duration(9.6), duration(75), duration(3 * 3600 + 62)
    ('0:10', '1:15', '3:01:02')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


EVERY_S = 30.0
EVERY_SHARE = 0.1 - 1e-9


class PlainLines:
    """Events as plain lines for a log or a pipe: no control character, a step each 10 % or 30 s."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._total = 0
        self._last: dict[str, tuple[float, float]] = {}
        """What was said last of each stage: share done, time."""

    def lines(self, event: Event) -> list[str]:
        """The lines that an event is worth; none for one that is not due."""
        kind = event["event"]
        if kind == "plan":
            self._total = event["updates"]["total"]
        if kind == "progress":
            total = event["total"]
            if not self._due(event["what"], event["done"] / total if total else 0.0):
                return []
            what, done = event["what"], event["done"]
            return [f"{what}: {amount(what, done)}" + (f" of {amount(what, total)}" if total else "")]
        if kind == "step" and not self._due("step", event["step"] / max(self._total, 1)):
            return []
        describe = _DESCRIBED.get(kind)
        return describe(event, self._total).splitlines() if describe else []

    def _due(self, what: str, share: float) -> bool:
        said, at = self._last.get(what, (None, 0.0))
        now = self._clock()
        if said is not None and share >= said and share < 1 and share - said < EVERY_SHARE and now - at < EVERY_S:
            return False
        self._last[what] = (share, now)
        return True


def plan_rows(plan: Event) -> list[tuple[str, str]]:
    """The plan as (what, value) rows for people."""
    data, batch, updates, lora = plan["data"], plan["batch"], plan["updates"], plan["lora"]
    tokens, memory = plan["image_tokens"], plan["memory_gib"]
    full = lora.get("method") == "full"  # a run of an older version has no such word
    modules = ", ".join(f"{part} {n} {'weights' if full else 'modules'}" for part, n in lora["modules"].items())
    devices = f"{batch['devices']} device{'s' if batch['devices'] > 1 else ''}"
    return [
        ("devices", ", ".join(plan["devices"])),
        *_data_rows(data),
        ("model", f"{plan['model']}, {lora['total'] / 1e6:,.1f} M parameters"),
        ("full tuning" if full else "LoRA", f"{modules}; {lora['trainable']:,} trainable ({lora['share']:.2%})"),
        ("batch", f"{batch['batch_size']} x {devices} x {batch['accumulation']} accumulation = {batch['effective']}"),
        ("updates", updates["formula"]),
        ("image tokens", f"{tokens['min']} min, {tokens['median']} median, {tokens['max']} max"),
        *_foretold(plan),
        *([("augment", _pairs(plan["augment"]))] if plan.get("augment") else []),
        ("memory", f"about {memory['total']} GiB a device ({memory['assumes']})"),
        ("evaluations", _steps_text(plan["evaluations"])),
        ("checkpoints", _steps_text(plan["checkpoints"])),
    ]


def _data_rows(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is learned from; of several data sets, what an epoch takes from each."""
    sets = data.get("sets", ())  # a run of an older version has no such word
    have = f"{data['samples']:,} samples, {data['pictures']:,} pictures"
    rows = [("data", f"{data['name']}, split {data['split']}: {have}")]
    if len(sets) > 1:
        rows = [
            ("", f"{one['drawn']:,} of {one['name']}, split {one['split']}, which has {one['samples']:,}: "
                 f"{one['drawn'] / data['samples']:.0%} of an epoch")
            for one in sets
        ]  # fmt: skip
        rows = [("data", f"{len(sets)} sets: {have}"), *rows]
    if data["absent"]:
        which = "1 of them asks" if data["absent"] == 1 else f"{data['absent']:,} of them ask"
        rows.append(("", f"{which} for something that is not in the picture"))
    return rows


def _pairs(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def _aligned(rows: list[tuple[str, str]]) -> str:
    width = max(len(what) for what, _ in rows) + 1
    return "\n".join(f"{what:<{width}}{value}" for what, value in rows)


def _foretold(plan: Event) -> list[tuple[str, str]]:
    """What plans of older versions do not have."""
    if "sample_tokens" not in plan:
        return []
    tokens, small, disk, rates = (plan[key] for key in ("sample_tokens", "small_boxes", "disk", "learning_rates"))
    rows = [("tokens", f"a sample has {tokens['min']} min, {tokens['median']} median, {tokens['max']} max")]
    if small["boxes"]:
        rows.append(
            ("", f"{small['boxes']:,} of {small['of']:,} boxes are under {small['px']} px in the model's frame")
        )
    rows.append(("learning rate", f"{sparkline(rates)} up to {max(rates):.1e}"))
    return [*rows, ("disk", f"at most {disk['needed_gb']} GB of {disk['free_gb']} free")]


_LEVELS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float]) -> str:
    """Numbers from 0 up as a row of bars, the largest one in full.

    >>> sparkline([0, 1, 2, 4])
    '▁▂▄█'
    """
    most = max(values, default=0) or 1
    return "".join(_LEVELS[min(7, int(value / most * 7.999))] for value in values)


def memory_text(finished: Event) -> str:
    """What a run took, and what its plan had said.

    >>> memory_text({"memory_gib": 31.8, "estimate_gib": 30.0})
    '31.8 GiB of GPU memory (planned: 30.0)'
    """
    if finished["estimate_gib"] is None:
        return f"{finished['memory_gib']} GiB of memory"
    return f"{finished['memory_gib']} GiB of GPU memory (planned: {finished['estimate_gib']})"


def _steps_text(steps: list[int]) -> str:
    if not steps:
        return "none"
    shown = ", ".join(str(step) for step in steps[:6])
    return f"at step {shown}" + (f", … {steps[-1]} ({len(steps)} in all)" if len(steps) > 6 else "")


def step_text(event: Event, total: int) -> str:
    """A training step in one line."""
    norm = event["grad_norm"]
    by_task = "".join(f" {task} {_number(value)}" for task, value in event.get("loss_by_task", {}).items())
    return (
        f"step {event['step']}/{total}  epoch {event['epoch']:.2f}  loss {_number(event['loss'])}"
        f"{f' ({by_task.strip()})' if by_task else ''}"
        f"  lr {event['learning_rate']:.2e}  grad norm {'-' if norm is None else _number(norm)}"
        f"  {event['samples_per_s']:.1f} samples/s  {event['memory_gib']:.2f} GiB"
    )


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4f}"


def eval_text(event: Event) -> str:
    """An evaluation in one line."""
    value = "not measured" if event["value"] is None else f"{event['value']:.3f}"
    which = "base model" if event["step"] == 0 else f"step {event['step']}"
    parts = {task: part for task, part in event.get("by_task", {}).items() if part["value"] is not None}
    by_task = ", ".join(f"{task} {part['metric']} {part['value']:.3f}" for task, part in parts.items())
    measured = f"{event['metric']} {value}{f' ({by_task})' if len(parts) > 1 else ''}"
    return (
        f"{which}: {measured}, parse rate {event['parse_rate']:.3f} "
        f"({event['samples']} held-out samples, {event['seconds']:.1f} s)"
    )


def finished_text(event: Event) -> str:
    """The end of a run in one line."""
    text = f"finished: {event['steps']} updates in {event['seconds']:.1f} s"
    if event.get("estimate_gib") is not None:
        text += f", {memory_text(event)}"
    if event["value"] is not None and event["baseline"] is not None:
        text += f"; {event['metric']} {event['baseline']:.3f} -> {event['value']:.3f} (step {event['best_step']})"
    return text


def _stopped_text(event: Event) -> str:
    where = event["checkpoint"] or "none was made yet"
    return f"stopped at step {event['step']}; checkpoint: {where}\nto go on: qwenft train --resume {event['run']}"


def _resumed_text(event: Event) -> str:
    return f"going on after step {event['step']}" + (f", from {event['checkpoint']}" if event["checkpoint"] else "")


_DESCRIBED: Mapping[str, Callable[[Event, int], str]] = {
    "note": lambda e, _: e["text"],
    "waiting": lambda e, _: e["text"],
    "warning": lambda e, _: f"warning: {e['text']}",
    "plan": lambda e, _: _aligned(plan_rows(e)),
    "run": lambda e, _: f"run {e['name']}: {e['path']}",
    "step": step_text,
    "eval": lambda e, _: f"measured {eval_text(e)}",
    "checkpoint": lambda e, _: f"checkpoint: {e['path']}",
    "adapter": lambda e, _: f"adapter of step {e['step']}: {e['path']}",
    "finished": lambda e, _: finished_text(e),
    "stopping": lambda e, _: "stopping: a checkpoint is made first (Ctrl-C again ends at once)",
    "stopped": lambda e, _: _stopped_text(e),
    "resumed": lambda e, _: _resumed_text(e),
    "stage": lambda e, _: f"\n[{e['number']}/{e['total']}] {e['title']}\n    {e['command']}".rstrip(),
}
