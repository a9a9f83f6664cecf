"""Findings: what a check saw, its verdict, and what mends it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from qwenft.core.errors import QwenftError

Verdict = Literal["ok", "note", "warning", "broken"]
"""note: nothing is wrong, and something is not there; warning: it goes on, worse; broken: something needed does not
work."""
VERDICTS: Final[tuple[Verdict, ...]] = ("ok", "note", "warning", "broken")
COLUMNS: Final = ("verdict", "check", "found", "mend")


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the doctor's table."""

    check: str
    verdict: Verdict
    found: str
    mend: str = ""
    """What to type or do; empty where nothing needs to be."""

    def row(self) -> tuple[str, ...]:
        """The cells under COLUMNS."""
        return (self.verdict, self.check, self.found, self.mend)

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return asdict(self)


def worst(findings: Sequence[Finding]) -> Verdict:
    """The worst verdict of all.

    >>> worst([Finding("a", "note", ""), Finding("b", "broken", ""), Finding("c", "ok", "")])
    'broken'
    """
    return max((finding.verdict for finding in findings), key=VERDICTS.index, default="ok")


def broken_error(findings: Sequence[Finding]) -> QwenftError | None:
    """The error to end with where something is broken; None where nothing is."""
    broken = [finding for finding in findings if finding.verdict == "broken"]
    if not broken:
        return None
    return QwenftError(
        f"{len(broken)} of {len(findings)} checks failed: {', '.join(finding.check for finding in broken)}",
        hint=broken[0].mend,
    )
