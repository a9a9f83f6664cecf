"""The body of `eval`: a run or a base model answers a split, and answers and figures are written below it."""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qwenft.core.errors import UsageError
from qwenft.core.events import Emit, ignore, note, warning
from qwenft.core.files import whole_folder, write_json, write_jsonl, write_whole
from qwenft.core.predictions import Prediction, Question
from qwenft.core.runs import Answerer, Contract, Threshold, choose_answerer
from qwenft.core.samples import PreparedDataset, Sample, open_dataset
from qwenft.evaluate.asking import ask, forget_answers, kept_answers
from qwenft.evaluate.compare import compare_predictions
from qwenft.evaluate.report import Evaluation, render_report
from qwenft.evaluate.score import eyeless_baseline, score_predictions, scored_split
from qwenft.evaluate.table import threshold_text
from qwenft.evaluate.threshold import threshold_figures
from qwenft.model.fetch import check_answerable

if TYPE_CHECKING:
    from qwenft.predict.generate import Predictor

REPORT: Final = "report.html"
_VERSIONS: Final = ("qwenft", "torch", "transformers", "peft", "faster-coco-eval", "pycocoevalcap", "numpy")


@dataclass(frozen=True, slots=True)
class EvalResult:
    """What `evaluate_run` found out, and where it lies."""

    folder: Path
    """Holds predictions.jsonl, metrics.json, report.html and, with a baseline, baseline-predictions.jsonl."""
    metrics: Mapping[str, Any]
    """The content of metrics.json (docs/metrics.md)."""

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.folder / REPORT

    def to_json(self) -> dict[str, Any]:
        """As `qwenft eval --json` prints it."""
        return {"folder": str(self.folder), **self.metrics}


@dataclass(frozen=True, slots=True)
class _Exam:
    """What is asked."""

    dataset: PreparedDataset
    split: str
    samples: tuple[Sample, ...]
    num_samples_of_split: int

    @property
    def name(self) -> str:
        part = f"-{len(self.samples)}" if len(self.samples) < self.num_samples_of_split else ""
        return f"{self.dataset.name}-{self.split}{part}"


@dataclass(frozen=True, slots=True)
class _Answers:
    ours: list[Prediction]
    baseline: list[Prediction] | None
    contract: Contract
    """What the predictor obeyed."""


def evaluate_run(
    run: str | None = None,
    *,
    data: str | Path | None = None,
    split: str | None = None,
    model: str | None = None,
    baseline: bool = False,
    limit: int | None = None,
    batch_size: int | None = None,
    gpus: str | None = None,
    root: Path | None = None,
    emit: Emit = ignore,
) -> EvalResult:
    """Let a run (or a base model) answer a split, score the answers, and write figures and a report below the run.

    run: name or path.  Unset: the latest finished run, if `model` is unset or is the model that run was trained on;
    otherwise the base model.  data, split: unset: the run's own data set or the only one, and its held-out split.
    baseline: the model without its adapter answers too.  limit: at most so many samples, evenly spread over the split.
    A killed evaluation goes on where it stopped, in portions of 1,024 answers, and ends with the same figures.
    On the whole held-out split of its own data set, unseen in training, a threshold on the score is chosen and written
    into the run's contract (threshold.py).
    Writes <run>/eval/<data>-<split>/, whole or absent; a part of a split has its own folder (…-<number>), and a base
    model writes under runs/base-<model>/.  Raises UsageError, RunError, DataError, ModelError or DeviceError.

    >>> from qwenft import evaluate_run
    >>> found = evaluate_run("first", split="val", limit=4, gpus="cpu")
    >>> found.report.name, 0 <= found.metrics["scores"]["parse_rate"] <= 1
    ('report.html', True)
    """
    return evaluate_data(
        run, data=[data], split=split, model=model, baseline=baseline, limit=limit, batch_size=batch_size, gpus=gpus,
        root=root, emit=emit,
    )[0]  # fmt: skip


def evaluate_data(
    run: str | None = None,
    *,
    data: Sequence[str | Path | None],
    split: str | None = None,
    model: str | None = None,
    baseline: bool = False,
    limit: int | None = None,
    batch_size: int | None = None,
    gpus: str | None = None,
    root: Path | None = None,
    emit: Emit = ignore,
) -> list[EvalResult]:
    """`evaluate_run` on several data sets, one after another with one model: what was gained here and forgotten there.

    Raises UsageError too where two data sets would write into one folder.
    """
    base = (root or Path.cwd()).absolute()
    subject = choose_answerer(run, model, base)
    emit(note(subject.text()))
    exams = [_exam(subject, data=each, split=split, limit=limit, root=base, emit=emit) for each in data]
    _check_names(exams)
    predictor = _load_predictor(subject, gpus, emit)
    results = []
    for each, exam in zip(data, exams, strict=True):
        inputs = {
            "run": run, "data": None if each is None else str(each), "split": split, "model": model,
            "baseline": baseline, "limit": limit, "batch_size": batch_size, "gpus": gpus,
        }  # fmt: skip
        evals = subject.run.evals if subject.run else base / "runs" / _base_name(subject.model) / "eval"
        answers = _let_answer(predictor, subject, exam, evals, baseline=baseline, batch_size=batch_size, emit=emit)
        metrics = {**_metrics(subject, exam, answers), "inputs": inputs}
        results.append(_written(evals / exam.name, metrics, subject, exam, answers))
        forget_answers(evals, exam.name)
        _keep_thresholds(subject, exam, metrics, emit)
        emit(note(f"report: {results[-1].report}"))
    return results


def _written(folder: Path, metrics: Mapping[str, Any], subject: Answerer, exam: _Exam, answers: _Answers) -> EvalResult:
    evaluation = Evaluation(
        metrics,
        exam.samples,
        answers.ours,
        answers.baseline,
        exam.dataset.path,
        command_of(metrics["inputs"]),
        asdict(subject.contract) if subject.contract else None,
        tuple(subject.run.read_events()) if subject.run else (),
    )
    return write_evaluation(folder, evaluation)


def write_evaluation(folder: Path, evaluation: Evaluation) -> EvalResult:
    """Write an evaluation into its folder, whole or not at all, in the place of an earlier one."""
    page = render_report(evaluation)
    with whole_folder(folder) as staging:
        write_jsonl(staging / "predictions.jsonl", [p.to_json() for p in evaluation.ours])
        if evaluation.theirs is not None:
            write_jsonl(staging / "baseline-predictions.jsonl", [p.to_json() for p in evaluation.theirs])
        write_json(staging / "metrics.json", evaluation.metrics)
        write_whole(staging / REPORT, page.encode("utf-8", "replace"))
    return EvalResult(folder, evaluation.metrics)


def _keep_thresholds(subject: Answerer, exam: _Exam, metrics: Mapping[str, Any], emit: Emit) -> None:
    """Write the thresholds chosen here into the adapter's contract, where this is the place to choose them."""
    whole, seen = len(exam.samples) == exam.num_samples_of_split, metrics["trained_on"]
    if subject.run is None or subject.contract is None or not whole or metrics["role"] != "held-out":
        return
    if exam.dataset.name not in subject.contract.data.split(", ") or (seen and seen["pictures"]):
        return
    chosen = {task: figures for task, figures in metrics["threshold"].items() if figures["chosen"]}
    for task, figures in chosen.items():
        emit(note(threshold_text(task, figures)))
    kept = {
        task: Threshold(figures["chosen"]["threshold"], exam.dataset.name, exam.split, len(exam.samples))
        for task, figures in chosen.items()
    }
    if kept:
        replace(subject.contract, thresholds={**subject.contract.thresholds, **kept}).write(subject.run.adapter)


def command_of(inputs: Mapping[str, Any]) -> str:
    """The command line that asks the same again.

    >>> command_of({"run": "first", "split": None, "baseline": True, "batch_size": 8})
    'qwenft eval --run first --baseline --batch-size 8'
    """
    words = ["qwenft", "eval"]
    for name, value in inputs.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)


def _check_names(exams: Sequence[_Exam]) -> None:
    names = [exam.name for exam in exams]
    doubled = [name for name in names if names.count(name) > 1]
    if doubled:
        raise UsageError(
            f"two data sets would be written as {doubled[0]}", hint="name each --data once, or score them one by one"
        )


def spread(samples: Sequence[Sample], limit: int | None) -> tuple[Sample, ...]:
    """At most `limit` samples at even distances: the first ones may be of one kind, and a random draw would move."""
    if limit is None or limit >= len(samples):
        return tuple(samples)
    return tuple(samples[number * len(samples) // limit] for number in range(limit))


def _base_name(model: str) -> str:
    return f"base-{Path(model).name or 'model'}"


def _exam(
    subject: Answerer, *, data: str | Path | None, split: str | None, limit: int | None, root: Path, emit: Emit
) -> _Exam:
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be over 0, got {limit}", hint="leave it out to score the whole split")
    own = subject.contract.data.split(", ") if subject.contract else []
    there = [root / "data" / name for name in own if (root / "data" / name / "manifest.json").is_file()]
    if data is None and there:
        data = there[0]
        if len(own) > 1:
            each = " ".join(f"--data {name}" for name in own)
            emit(
                note(
                    f"it was trained on {len(own)} data sets, of which this scores {there[0].name}; all of them: {each}"
                )
            )
    dataset = open_dataset(data, root)
    chosen = scored_split(dataset, split)
    every = dataset.samples(chosen)
    exam = _Exam(dataset, chosen, spread(every, limit), len(every))
    emit(note(f"scoring {len(exam.samples)} of {len(every)} samples of {dataset.name}, split {chosen}"))
    seen = trained_on(subject.trained, exam.samples)
    if seen and seen["pictures"]:
        emit(
            warning(f"{seen['pictures']} of {seen['of']} pictures were trained on: these figures are no held-out ones")
        )
    return exam


def trained_on(contract: Contract | None, samples: Sequence[Sample]) -> dict[str, int] | None:
    """How many of the pictures a model was trained on; None for a base model, of which nobody knows."""
    if contract is None or not contract.pictures:
        return None
    trained = set(contract.pictures)
    pictures = {sample.picture for sample in samples}
    num_samples = sum(sample.picture in trained for sample in samples)
    return {"pictures": len(pictures & trained), "of": len(pictures), "samples": num_samples}


def _let_answer(
    predictor: "Predictor",
    subject: Answerer,
    exam: _Exam,
    evals: Path,
    *,
    baseline: bool,
    batch_size: int | None,
    emit: Emit,
) -> _Answers:
    questions = [Question.of(sample, exam.dataset.path) for sample in exam.samples]
    kept = kept_answers(evals, exam.name, subject, batch_size)
    ours = ask(predictor, questions, kept, batch_size=batch_size, emit=emit)
    theirs = None
    if baseline and subject.adapter is None:
        emit(warning("--baseline compares an adapter with its base model; here the base model itself is scored"))
    elif baseline:
        emit(note(f"the base model {subject.model} answers the same questions"))
        with predictor.adapter_disabled():
            theirs = ask(predictor, questions, kept.with_suffix(".base.jsonl"), batch_size=batch_size, emit=emit)
    return _Answers(ours, theirs, predictor.contract)


def _load_predictor(subject: Answerer, gpus: str | None, emit: Emit) -> "Predictor":
    check_answerable(subject.model, gpus)
    from qwenft.predict.generate import Predictor  # torch, transformers: seconds, so only here

    return Predictor.load(subject.model, subject.adapter, gpus=gpus, emit=emit)


def _metrics(subject: Answerer, exam: _Exam, answers: _Answers) -> dict[str, Any]:
    contract = answers.contract
    return {
        **measured(
            exam.dataset, exam.split, exam.samples, ours=answers.ours, theirs=answers.baseline, trained=subject.trained
        ),
        "run": subject.run.name if subject.run else None,
        "model": subject.model,
        "adapter": str(subject.adapter) if subject.adapter else None,
        "asked": {
            "min_pixels": contract.min_pixels,
            "max_pixels": contract.max_pixels,
            "prompts": asdict(contract.prompts),
        },
    }


def measured(
    dataset: PreparedDataset,
    split: str,
    samples: Sequence[Sample],
    *,
    ours: Sequence[Prediction],
    theirs: Sequence[Prediction] | None = None,
    trained: Contract | None,
) -> dict[str, Any]:
    """What metrics.json holds whoever answered.  samples: of the split, with their predictions in the same order;
    theirs: the base model's; trained: the contract of what was trained, if it is known.
    """
    return {
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "data": dataset.name,
        "data_path": str(dataset.path),
        "split": split,
        "role": dataset.manifest.splits[split].role,
        "samples": {"scored": len(samples), "of": len(dataset.samples(split))},
        "pictures": len({sample.picture for sample in samples}),
        "trained_on": trained_on(trained, samples),
        "scores": score_predictions(samples, ours),
        "baseline": None if theirs is None else score_predictions(samples, theirs),
        "difference": None if theirs is None else compare_predictions(samples, ours, theirs),
        "threshold": threshold_figures(samples, ours, trained.thresholds if trained else {}),
        "constant_box": eyeless_baseline(dataset, split, samples),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
