"""The command line through its door: what a mistake is answered with, what the help says, where words go."""

import io
import json
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from prepare_inputs import good_rows, picture, write_records
from terminal import QWENFT, plain

from qwenft import __version__, cli
from qwenft.commands.train import SETTINGS
from qwenft.core.config import TrainConfig, load_config, setting_fields
from qwenft.core.files import write_json

COMMANDS = ("prepare", "train", "predict", "eval", "steps", "runs", "config", "export", "doctor", "app", "demo")


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[str], Said]]:
    """Type a command line into this process."""
    before = signal.getsignal(signal.SIGTERM)
    for name in ("QWENFT_DEBUG", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.setenv(name, "")  # so that what a command sets is taken back
        monkeypatch.delenv(name)
    for name in ("huggingface_hub.constants", "datasets.config"):  # as in a process that has asked no hub yet
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def typed(line: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["qwenft", *shlex.split(line)])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, said.out, said.err)

    yield typed
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def desk(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a person who has a prepared data set, a run, and many broken things."""
    rows = good_rows(workplace / "good")
    write_records(workplace / "good", rows)
    (workplace / "photo.png").write_bytes(picture(1))
    (workplace / "zero.jpg").write_bytes(b"")
    (workplace / "page.jpg").write_text("<!DOCTYPE html><title>404</title>")
    (workplace / "broken.json").write_text('[\n  {"image": "a.png",\n   "bbox": [1, 2 3, 4]}\n]\n')
    (workplace / "odd.json").write_text('[{"colour": "red", "weight": 3}]')
    (workplace / "empty.jsonl").write_bytes(b"")
    (workplace / "folder").mkdir()
    (workplace / "settings.yaml").write_text("model: tiny\nlearning_rte: 1e-4\n")
    write_records(workplace / "pages", [{"image": "../page.jpg", "expression": "a", "bbox": [1, 2, 3, 4]}])
    (workplace / "pages" / "page.jpg").write_text("<!DOCTYPE html>")
    write_records(workplace / "html", [{"image": "page.jpg", "expression": "a", "bbox": [1, 2, 3, 4]}])
    (workplace / "html" / "page.jpg").write_text("<!DOCTYPE html>")
    run = workplace / "runs" / "first"
    run.mkdir(parents=True)
    write_json(run / "events.jsonl", {"event": "plan"})
    monkeypatch.chdir(workplace)
    return workplace


BAD = [
    ("unreachable endpoint", "prepare --dataset o/n --hf-endpoint http://127.0.0.1:9", 1, r"127\.0\.0\.1:9", "mirror"),
    ("missing file", "prepare --dataset nowhere.jsonl", 1, r"nowhere\.jsonl", ""),
    ("zero-byte file", "prepare --dataset empty.jsonl", 1, r"empty\.jsonl", ""),
    ("HTML named jpg in a data set", "prepare --dataset html/train.jsonl", 1, r"none of 1 row.*\n.*is no picture", ""),
    ("broken JSON", "prepare --dataset broken.json", 1, r"broken\.json.*line 3.*column 1[0-9]", ""),
    ("unknown schema", "prepare --dataset odd.json", 1, r"odd\.json", "--columns"),
    ("columns nonsense", "prepare --dataset good --columns nonsense", 2, r"role=column.*'nonsense'", "image=img"),
    ("negative limit", "prepare --dataset good --limit -1", 2, r"'--limit'", "qwenft prepare"),
    ("limit of no number", "prepare --dataset good --limit many", 2, r"'--limit'", "qwenft prepare"),
    ("unknown task of prepare", "prepare --dataset good --task groundin", 1, r"'groundin'", "'grounding'"),
    ("unknown box format", "prepare --dataset good --bbox-format xyhw", 2, r"'xyhw'", "'xywh'"),
    ("nothing to prepare", "prepare", 2, r"missing option '--dataset'", "qwenft prepare --dataset"),
    ("unknown key", "train learning_rte=1e-4", 1, r"'learning_rte'", "'learning_rate'"),
    ("unknown key in YAML", "train --config settings.yaml", 1, r"'learning_rte' .*settings\.yaml", "'learning_rate'"),
    ("bad value", "train epochs=many", 1, r"epochs: .*'many'", "qwenft config epochs$"),
    ("key without =", "train epochs 2", 2, r"'epochs' is no setting", "qwenft train epochs=2"),
    ("key and value with spaces", "train epochs = 2", 2, r"'epochs' is no setting", "qwenft train epochs=2$"),
    ("value out of range", "train batch_size=0", 1, r"batch_size: should be greater", "qwenft config batch_size$"),
    ("settings at odds", "train compile=true fast=false", 1, r"compile=true", "qwenft config compile$"),
    ("YAML that is not there", "train --config no.yaml", 1, r"no\.yaml does not exist", "qwenft config > no.yaml$"),
    ("option without its value", "prepare --dataset", 2, r"requires an argument", "qwenft prepare --help$"),
    ("nearly a choice", "predict photo.png a --task detect", 2, r"'detect'", "qwenft predict --task detection$"),
    ("setting as option", "train --batch-size 4", 2, r"--batch-size", "qwenft train batch_size=4"),
    ("setting as option with =", "train --lr=2e-4", 2, r"--lr", "qwenft train learning_rate=2e-4"),
    ("mistyped option", "train --epoch 2", 2, r"--epoch\b", "qwenft train --epochs 2"),
    ("mistyped flag", "train --dryrun", 2, r"--dryrun", "qwenft train --dry-run"),
    ("mistyped command", "trian", 2, r"'trian'", "qwenft train"),
    ("mistyped setting", "config lerning_rate", 1, r"no setting 'lerning_rate'", "qwenft config learning_rate"),
    ("setting that is like none", "config zzzz", 1, r"no setting 'zzzz'", "qwenft config$"),
    ("settings of no run", "config --from frist", 1, r"no run 'frist'", "'first'"),
    ("mistyped option of export", "export --pusch o/n", 2, r"--pusch", "qwenft export --push o/n"),
    ("form of export that is none", "export --to gguf", 2, r"'gguf'", "qwenft export"),
    ("export of no run", "export --run frist", 1, r"no run 'frist'", "'first'"),
    ("export of an unfinished run", "export --run first", 1, r"runs/first has no adapter", "--run"),
    ("publication without an owner", "export --push mine", 1, r"no finished run", "qwenft runs"),
    ("doctor of no data set", "doctor --data nowhere", 1, r"nowhere does not exist", ""),
    ("doctor of no run", "doctor --run frist", 1, r"no run 'frist'", "'first'"),
    ("absent dashboard", "train --model tiny report_to=swanlab", 1, r"needs .* swanlab", "pip install"),
    ("source that is like none", "prepare --dataset ./zzzz", 1, r"zzzz does not exist$", "OWNER/NAME$"),
    ("source mistyped", "prepare --dataset goood", 1, r"goood does not exist$", "'good'"),
    ("training of no model", "train --model tinny", 1, r"no model at .*tinny$", "--model tiny$"),
    ("model without its owner", "train --model Qwen2.5-VL-3B-Instrct", 1, r"no model at", "--model Qwen/Qwen2.5-VL-3B"),
    ("training of a folder", "train --model folder", 1, r"folder is no model: it has no config\.json", "tiny"),
    ("answers on no GPU", "predict photo.png dog --gpus 99 --model tiny", 1, r"--gpus 99: .*GPU", "--gpus|there are"),
    ("doctor of no model", "doctor --model ./nowhere --gpus cpu", 1, r"no model at .*nowhere", "tiny"),
    ("unlike any command", "xyz", 2, r"'xyz'", "qwenft --help"),
    ("existing run", "train --name first --model tiny", 1, r"runs/first exists", "--name"),
    ("name that is no folder", "train --name a/b", 1, r"'a/b'", "qwenft config name$"),
    ("no such GPU", "train --model tiny --gpus 7", 1, r"--gpus 7: .*GPU", "--gpus|there are"),
    ("a comma", "train --model tiny --gpus ,", 2, r"--gpus ','", "--gpus 1,3"),
    ("a GPU twice", "train --model tiny --gpus 0,0", 2, r"GPU 0 .*twice", "once"),
    ("data that is not prepared", "train --model tiny --data folder", 1, r"folder is no prepared", "qwenft prepare"),
    ("data that is not there", "train --model tiny --data scene", 1, r"scene does not exist", "'scenes'"),
    ("no text", "predict photo.png", 2, r"TEXT is missing", 'qwenft predict photo.png "find the dog"'),
    ("second picture for a text", "predict photo.png other.jpg", 2, r"TEXT is missing.*other\.jpg", "find the dog"),
    ("a file for a text", "predict photo.png broken.json", 2, r"TEXT is missing.*broken\.json", "find the dog"),
    ("empty text", "predict photo.png ''", 2, r"TEXT is missing", "find the dog"),
    ("nothing at all", "predict", 2, r"no picture", "qwenft predict"),
    ("missing picture", "predict nowhere.png dog", 1, r"nowhere\.png does not exist", ""),
    ("zero-byte picture", "predict zero.jpg dog", 1, r"zero\.jpg", ""),
    ("HTML named jpg", "predict page.jpg dog", 1, r"page\.jpg", ""),
    ("a text and a prompt", "predict photo.png dog --ask 'Where?'", 2, r"both TEXT and --ask.*'dog'", "--ask"),
    ("a text for a caption", "predict photo.png dog --task caption", 2, r"needs no text", "--task caption"),
    ("unknown score", "predict photo.png dog --score yesno", 2, r"'yesno'", "qwenft predict"),
    ("no file fits", "predict '*.webp' dog", 1, r"no file fits .*\*\.webp", "pattern"),
    ("nothing on stdin", "predict - dog", 1, r"stdin is empty", "qwenft predict - "),
    ("address of nobody", "predict http://127.0.0.1:9/a.png dog", 1, r"127\.0\.0\.1:9/a\.png cannot be fetched", ""),
    ("yes-no for a caption", "predict photo.png --task caption --score yes-no", 2, r"a caption has none", "--score"),
    ("unknown suffix", "predict photo.png dog --save out.gif", 2, r"out\.gif.*\.gif", r"\.png"),
    ("unknown task", "predict photo.png dog --task groundin", 2, r"'groundin'", "qwenft predict"),
    ("run that is not there", "predict photo.png dog --run frist", 1, r"no run 'frist'", "'first'"),
    ("unfinished run", "predict photo.png dog --run first", 1, r"runs/first has no adapter", "--run"),
    ("unknown model folder", "predict photo.png dog --model ./nowhere", 1, r"no model at .*nowhere", "tiny"),
    ("folder that is no model", "predict photo.png dog --model folder --gpus cpu", 1, r"folder", ""),
    ("several GPUs for one", "eval --model tiny --gpus cpu:2", 1, r"one device.*cpu:2", "--gpus"),
    ("unknown split", "eval --model tiny --split vall", 1, r"'vall'", "'val'"),
    ("eval of no run", "eval --run frist", 1, r"no run 'frist'", "'first'"),
    ("negative limit of eval", "eval --limit -1", 2, r"'--limit'", "qwenft eval"),
    ("answers that are not there", "eval --predictions nowhere.jsonl", 1, r"nowhere\.jsonl", ""),
    ("no count", "steps", 2, r"--n is missing", "qwenft steps --n 8000 --bs 4"),
    ("two counts", "steps --n 8 --data scenes", 2, r"--n excludes --data", "--data"),
]  # fmt: skip


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(("line", "status", "message", "hint"), [pytest.param(*row, id=name) for name, *row in BAD])
def test_a_mistake_is_answered_with_one_message_and_one_hint(
    desk: Path, say: Callable[[str], Said], line: str, status: int, message: str, hint: str
) -> None:
    before = files(desk)
    said = say(line)
    assert said.status == status, said
    assert said.out == ""
    assert re.search(f"^error: .*{message}", said.err, re.MULTILINE), said.err
    assert len(re.findall(r"^error: ", said.err, re.MULTILINE)) == 1
    assert len(re.findall(r"^try: \S", said.err, re.MULTILINE)) == 1, said.err
    tried = said.err.partition("\ntry: ")[2]
    assert re.search(hint, tried), tried
    assert tried.count("\n") == 1, "the hint is the last line"
    assert "Traceback" not in said.err
    assert "a bug" not in said.err
    assert files(desk) == before, "something was left half-written"


@pytest.mark.parametrize(
    "line",
    ["train --model tinny", "predict photo.png dog --model tinny", "predict photo.png dog --model tiny --gpus 99"],
    ids=["train", "predict", "GPU"],
)
def test_a_model_or_a_device_that_is_not_there_is_said_before_torch_is_loaded(desk: Path, line: str) -> None:
    loaded = "import sys; from qwenft import cli; sys.argv[0] = 'qwenft'\ntry: cli.main()\n"
    loaded += "except SystemExit: print('torch' in sys.modules)"
    status, out, err = plain([sys.executable, "-c", loaded, *shlex.split(line)], desk)
    assert (status, out) == (0, b"False\n"), err
    assert b"loading" not in err and err.count(b"error: ") == 1


def test_debug_shows_where_an_error_came_from(desk: Path, say: Callable[[str], Said]) -> None:
    with pytest.raises(cli.QwenftError):
        say("train --debug learning_rte=1")


def test_a_bug_is_called_one_and_asks_for_a_report(
    desk: Path, say: Callable[[str], Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenft.core.steps.count_updates", lambda *_, **__: 1 / 0)
    said = say("steps --n 8")
    assert said.status == 1
    assert said.err == (
        "error: a bug in qwenft: ZeroDivisionError: division by zero\ntry: --debug shows where; please report it\n"
    )


def test_every_command_has_help_that_fits_and_an_example_that_parses(say: Callable[[str], Said]) -> None:
    group = typer.main.get_command(cli.app)
    assert tuple(group.commands) == COMMANDS
    for name in COMMANDS:
        said = say(f"{name} --help")
        assert (said.status, said.err) == (0, "")
        assert max(map(len, said.out.splitlines())) <= 80
        assert "<bool>" not in said.out
        (example,) = re.findall(r"Example: (qwenft .*?) *$", said.out, re.MULTILINE)
        command, *words = shlex.split(example)[1:]
        assert command == name
        group.commands[name].make_context(name, words)  # raises for a word that it does not take


def test_the_settings_are_printed_as_a_file_that_train_takes(desk: Path, say: Callable[[str], Said]) -> None:
    said = say("config")
    assert said.status == 0
    (desk / "all.yaml").write_text(said.out)
    assert load_config(desk / "all.yaml") == TrainConfig()
    assert all("  # " in line for line in said.out.splitlines())
    assert said.err == "next: qwenft config > my.yaml; qwenft train --config my.yaml\n"
    assert json.loads(say("config --json").out).keys() == setting_fields().keys()


def test_one_setting_is_explained_also_by_what_others_call_it(desk: Path, say: Callable[[str], Said]) -> None:
    rows = dict(line.split("\t") for line in say("config lr").out.splitlines())
    assert (rows["setting"], rows["default"], rows["allowed"]) == ("learning_rate", "0.0001", "a number above 0")
    assert "augment.scale, augment.crop" in say("config augment").err
    (desk / "runs" / "first" / "config.yaml").write_text("learning_rate: 3e-3\nparts: [language, vision]\n")
    assert json.loads(say("config lr --from first --json").out)["value"] == 0.003
    rows = dict(line.split("\t") for line in say("config parts --from first").out.splitlines())
    assert (rows["in this run"], rows["default"]) == ("language, vision", "language")
    assert "learning_rate: 0.003  # Peak" in say("config --from first").out


def test_the_help_of_train_names_every_setting() -> None:
    assert SETTINGS.split(", ") == list(setting_fields())


def test_the_version_is_printed_without_a_command(say: Callable[[str], Said]) -> None:
    assert say("--version") == Said(0, f"qwenft {__version__}\n", "")


def test_nothing_typed_shows_the_help(say: Callable[[str], Said]) -> None:
    assert say("") == say("--help")


def test_a_count_stands_on_stdout_and_the_next_command_on_stderr(say: Callable[[str], Said]) -> None:
    said = say("steps --n 8000 --bs 4")
    assert said.out.splitlines()[0] == "ceil(ceil(8000 / 4) / 1) x 1 = 2000"
    assert said.err == "next: qwenft train batch_size=4 accumulation=1 epochs=1\n"
    said = say("steps --n 8000 --bs 4 --json")
    assert json.loads(said.out)["total_updates"] == 2000
    assert said.err == ""


def test_a_data_set_is_counted_with_the_settings_that_train_would_take(desk: Path, say: Callable[[str], Said]) -> None:
    samples = json.loads(say("steps --data scenes --bs 1 --accum 1 --json").out)["total_updates"]
    said = say("steps --data scenes")
    assert said.out.splitlines()[0] == f"ceil(ceil({samples} / 2) / 8) x 1 = {(samples + 15) // 16}"
    assert said.err == "next: qwenft train --data scenes batch_size=2 accumulation=8 epochs=1\n"
    (desk / "four.yaml").write_text("data: data/scenes\nbatch_size: 4\naccumulation: 1\n")
    assert f"ceil({samples} / 4)" in say("steps --config four.yaml").out
    assert f"ceil({samples} / 3)" in say("steps --config four.yaml --bs 3").out, "what is typed goes before the file"


def test_the_line_runs_from_a_file_to_boxes(desk: Path, say: Callable[[str], Said]) -> None:
    said = say("prepare --dataset good --out data/made --json")
    assert said.status == 0
    made = json.loads(said.out)
    assert made["path"] == str(desk / "data" / "made")
    assert made["counts"]["rows_read"] == 10
    said = say("prepare --dataset good --out data/made --overwrite")
    assert said.out.splitlines()[0] == "split\trole\tsamples\tpictures\ttask"
    assert said.err.splitlines()[-1] == "next: qwenft train --data data/made"

    said = say("eval --model tiny --data made --gpus cpu --json")
    assert said.status == 0, said.err
    assert json.loads(said.out)["model"] == "tiny"

    said = say("predict photo.png good/0.png 'find the dog' --model tiny --gpus cpu --json --save found")
    assert said.status == 0, said.err
    answers = [json.loads(line) for line in said.out.splitlines()]
    assert [answer["query"] for answer in answers] == ["the dog", "the dog"]
    assert sorted(path.name for path in (desk / "found").iterdir()) == ["0-boxes.png", "photo-boxes.png"]

    said = say("predict photo.png 'find the dog' --model tiny --gpus cpu")
    assert said.out.splitlines()[0] == "picture\tlabel\tx1 y1 x2 y2 (px)\tscore\tstatus"
    assert said.err.splitlines()[-1].endswith("photo.png 'find the dog' --model tiny --gpus cpu --save found.png")


def test_pictures_that_cannot_be_read_are_counted_and_the_others_answered(
    desk: Path, say: Callable[[str], Said]
) -> None:
    said = say("predict photo.png zero.jpg good/0.png nowhere.png 'the dog' --model tiny --gpus cpu --json")
    assert said.status == 1
    answers = [json.loads(line) for line in said.out.splitlines()]
    assert [Path(answer["image"]).name for answer in answers] == ["photo.png", "zero.jpg", "0.png", "nowhere.png"]
    assert [answer["status"] == "error" for answer in answers] == [False, True, False, True]
    assert re.findall(r"^error: (.*)$", said.err, re.MULTILINE) == [
        f"2 questions of 4 could not be asked, the others are answered; {answers[1]['how']}"
    ]


def test_the_installed_command_is_the_same_door(tmp_path: Path) -> None:
    status, out, err = plain([*QWENFT, "trian"], tmp_path)
    assert (status, out, err) == (2, b"", b"error: no such command 'trian'\ntry: qwenft train\n")
