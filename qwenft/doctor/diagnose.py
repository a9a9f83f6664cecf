"""The body of `doctor`: the machine, or a model, a data set and a run where they are named."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenft.core.events import Emit, ignore
from qwenft.doctor.findings import Finding, worst

if TYPE_CHECKING:
    from qwenft.doctor.model import ModelCheck


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, and what a model answered if one was asked."""

    findings: tuple[Finding, ...]
    next_command: str
    model: "ModelCheck | None" = None

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        value: dict[str, Any] = {"verdict": worst(self.findings)}
        value["findings"] = [finding.to_json() for finding in self.findings]
        return value | ({"model": self.model.to_json()} if self.model else {})


def diagnose(
    *,
    model: str | None = None,
    data: str | None = None,
    run: str | None = None,
    gpus: str | None = None,
    root: Path | None = None,
    emit: Emit = ignore,
) -> Diagnosis:
    """Check what is named; the machine where nothing is.

    model: a base model, asked for known boxes.  data: a prepared data set, read through.  run: what it left.
    Raises DataError, RunError, ModelError, HubError, DeviceError where what is named is not there at all.

    >>> from qwenft import diagnose
    >>> found = diagnose(data="scenes")
    >>> {finding.verdict for finding in found.findings}, found.next_command
    ({'ok'}, 'qwenft train --data scenes')
    """
    if model is None and data is None and run is None:
        from qwenft.doctor.environment import check_machine

        return Diagnosis(tuple(check_machine(emit)), "qwenft doctor --model tiny")
    findings: list[Finding] = []
    command, asked = "", None
    if data is not None:
        from qwenft.doctor.data import check_data

        findings += check_data(data, root=root, emit=emit)
        command = f"qwenft train --data {data}"
    if run is not None:
        from qwenft.doctor.run import check_run

        findings += check_run(run, root=root)
        command = f"qwenft eval --run {run} --baseline"
    if model is not None:
        from qwenft.doctor.model import check_model

        asked = check_model(model, gpus=gpus, emit=emit)
        findings += asked.findings
        command = f"qwenft train --model {model}"
    return Diagnosis(tuple(findings), command, asked)
