"""What a command's body tells its caller while it works: events, and their plain lines."""

from collections.abc import Callable, Mapping
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


def note(text: str) -> Event:
    """Something worth saying aloud."""
    return {"event": "note", "text": text}


def warning(text: str) -> Event:
    """Something that the user should look at, though the work goes on."""
    return {"event": "warning", "text": text}
