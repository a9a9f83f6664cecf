"""Data sets and a model from a hub that speaks the real protocol, over real sockets, in processes of their own."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from loopback_hub import LoopbackHub, environment, make_refcocog, refcocog_folder, serving

from qwenft.core import hub as core_hub
from qwenft.core.errors import HubError
from qwenft.core.hub import PUBLIC_HUB, HubAccess, hub_errors, open_hub
from qwenft.prepare.sources.hub import split_of

VAL, TEST = "data/val-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"
TOKEN = "hf_a_secret"
FOUND_WITHIN_S = 10

# huggingface_hub binds its endpoint and its cache when it is imported, so every case runs in a process of its own;
# one process does many cases, each on a repository of its own.
JOBS_SCRIPT = """
import hashlib, json, sys, time
from pathlib import Path
from qwenft.core.errors import QwenftError
from qwenft.prepare.sources import hub

def tables(data):
    pictures = {}
    for split, table in data.splits.items():
        pictures[split] = [[hashlib.sha256(row["image"]["bytes"]).hexdigest(), row["bbox"]] for row in table]
    return {"rows": pictures, "revision": data.revision, "endpoint": data.endpoint, "files": dict(data.files)}

def meter(events):
    from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter
    from qwenft.core.hub import byte_meter
    kind = byte_meter(100, 1100, events.append)
    with XetDownloadProgressReporter(reconstruction_desc="a", total=1000, log_level=0, tqdm_class=kind) as bars:
        for done in (400, 1000):
            report = dict(total_bytes_completed=done, total_transfer_bytes_completed=done, total_bytes=1000)
            rates = dict(total_bytes_completion_rate=1.0, total_transfer_bytes_completion_rate=1.0)
            bars.update_progress(type("Report", (), report | rates))
    return {}

results = {}
for name, call, arguments in json.loads(sys.stdin.read()):
    events, begun = [], time.monotonic()
    try:
        if call == "hub":
            found = tables(hub.load_hub(**arguments, emit=events.append))
        elif call == "folder":
            found = tables(hub.load_folder(Path(arguments.pop("path")), **arguments))
        elif call == "model":
            from qwenft.model.fetch import model_folder
            found = {"folder": str(model_folder(arguments["name"], emit=events.append))}
        elif call == "chunk":
            import huggingface_hub.constants
            huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = arguments["bytes"]
            found = {}
        else:
            found = meter(events)
    except QwenftError as error:
        found = {"error": type(error).__name__, "message": str(error), "hint": error.hint}
    results[name] = {**found, "events": [dict(event) for event in events], "seconds": time.monotonic() - begun}
print(json.dumps(results))
"""
Job = tuple[str, str, dict[str, Any]]


def run(script: str, url: str, home: Path, *arguments: str, given: object = None, **more: str) -> dict[str, Any]:
    """Run a script that prints one JSON object, with nothing of this machine's hub settings; stderr must stay empty."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    child = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        input=json.dumps(given),
        env=clean | environment(url, home, **more),
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert child.stderr == ""
    answer: dict[str, Any] = json.loads(child.stdout)
    return answer


def job(name: str, dataset: str, **arguments: Any) -> Job:
    return (name, "hub", {"dataset_id": dataset, **arguments})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return refcocog_folder(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def hub(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    base = tmp_path_factory.mktemp("repositories")
    parts = make_refcocog(base / "parts", val=1)
    lines = "".join(f"- config_name: {name}\n  data_files: data/val-*\n" for name in ("birds", "boats"))
    (parts / "README.md").write_text(f"---\nconfigs:\n{lines}---\n")
    script = base / "script"
    script.mkdir()
    (script / "script.py").write_text("raise SystemExit('never run')\n")
    small = ("cut", "wrong", "broken", "busy", "gated", "redirect", "xet", "limit", "failing")
    shown = make_refcocog(base / "small", val=4, test=2)
    folders = {f"datasets/o/{name}": shown for name in small}
    with serving(
        {"datasets/Kangheng/refcocog": source, "datasets/o/parts": parts, "datasets/o/script": script, **folders}
    ) as running:
        faults = running.faults
        faults.cut = {f"o/cut/{VAL}"}
        faults.wrong_bytes = {f"o/wrong/{VAL}": 1, f"o/broken/{VAL}": 9}
        faults.busy, faults.status = {"o/busy": 2}, {"o/limit": 429, "o/failing": 503}
        faults.gated, faults.redirect, faults.xet = {"o/gated"}, {"o/redirect"}, {"o/xet"}
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def answers(hub: LoopbackHub, home: Path, source: Path) -> dict[str, Any]:
    """What every job ended in."""
    jobs = [
        job("val", "Kangheng/refcocog", splits=["val"]),
        ("chunk", "chunk", {"bytes": 65536}),
        job("cut", "o/cut", splits=["val"]),
        job("wrong", "o/wrong", splits=["val"]),
        job("broken", "o/broken", splits=["val"]),
        job("busy", "o/busy", splits=["val"]),
        job("gated", "o/gated"),
        job("redirect", "o/redirect", splits=["val"], send_token=True),
        job("xet", "o/xet", splits=["val"]),
        job("limit", "o/limit"),
        job("failing", "o/failing"),
        job("script", "o/script"),
        job("several", "o/parts"),
        job("near part", "o/parts", config="bird"),
        job("part", "o/parts", config="boats"),
        job("absent", "o/nothing"),
        job("no id", "o/too/many"),
        job("near split", "Kangheng/refcocog", splits=["vall"]),
        job("revision", "Kangheng/refcocog", revision="v9"),
        job("whole", "Kangheng/refcocog", revision="main"),
        job("other hub", "Kangheng/refcocog", endpoint=PUBLIC_HUB),
        ("folder", "folder", {"path": str(source), "splits": ["test"]}),
        ("file", "folder", {"path": str(source / VAL)}),
        ("no folder", "folder", {"path": str(source / "nowhere")}),
        ("meter", "meter", {}),
    ]
    return run(JOBS_SCRIPT, hub.url, home, given=jobs, HF_TOKEN=TOKEN)


def stored_rows(source: Path, file: str) -> list[list[str]]:
    """An independent reading of a parquet file: hash of the picture's bytes, and the box as it is written."""
    from pyarrow import parquet

    rows = parquet.read_table(source / file).to_pylist()
    return [[hashlib.sha256(row["image"]["bytes"]).hexdigest(), row["bbox"]] for row in rows]


def test_rows_and_picture_bytes_come_through_as_they_are_stored(
    answers: dict[str, Any], hub: LoopbackHub, source: Path
) -> None:
    whole = answers["whole"]
    assert whole["rows"] == {"val": stored_rows(source, VAL), "test": stored_rows(source, TEST)}
    assert whole["revision"] == hub.commit("datasets/Kangheng/refcocog")
    assert whole["endpoint"] == hub.url
    assert whole["files"] == {"val": [VAL], "test": [TEST]}


def test_only_the_split_asked_for_is_fetched_and_nothing_twice(answers: dict[str, Any], hub: LoopbackHub) -> None:
    assert list(answers["val"]["rows"]) == ["val"]
    assert [name for name in hub.fetched("Kangheng/refcocog") if name.endswith(".parquet")] == [VAL, TEST]
    assert "1 of 1 files" in answers["val"]["events"][0]["text"]
    assert "1 of 2 files" in answers["whole"]["events"][0]["text"]


def test_a_fetch_reports_bytes_up_to_the_total(answers: dict[str, Any], source: Path) -> None:
    steps = [event for event in answers["val"]["events"] if event["event"] == "progress"]
    size = (source / VAL).stat().st_size
    assert steps[-1] == {"event": "progress", "what": "fetch", "done": size, "total": size}
    assert [step["done"] for step in steps] == sorted(step["done"] for step in steps)


def test_a_bar_of_the_xet_protocol_counts_too(answers: dict[str, Any]) -> None:
    assert {event["done"] for event in answers["meter"]["events"]} == {500, 1100}


def test_a_download_cut_in_the_middle_goes_on_where_it_was(answers: dict[str, Any], hub: LoopbackHub) -> None:
    assert len(answers["cut"]["rows"]["val"]) == 4
    ranges = [seen.headers.get("range") for seen in hub.requests("o/cut") if seen.method == "GET" and VAL in seen.path]
    assert ranges[0] is None
    assert ranges[1] is not None and ranges[1].startswith("bytes=") and ranges[1] != "bytes=0-"


def test_a_file_that_arrives_with_wrong_bytes_is_fetched_once_more(answers: dict[str, Any], hub: LoopbackHub) -> None:
    assert answers["wrong"]["rows"] == answers["cut"]["rows"]
    assert hub.fetched("o/wrong").count(VAL) == 2


def test_a_file_that_arrives_broken_twice_is_an_error(answers: dict[str, Any], hub: LoopbackHub) -> None:
    assert answers["broken"]["message"] == f"{VAL} of o/broken arrived broken twice from {hub.url}"
    assert hub.fetched("o/broken").count(VAL) == 2


def test_a_hub_that_is_busy_for_a_moment_is_asked_again(answers: dict[str, Any]) -> None:
    assert answers["busy"]["rows"] == answers["cut"]["rows"]


def test_large_files_on_another_host_are_followed_without_the_token(answers: dict[str, Any], hub: LoopbackHub) -> None:
    assert answers["redirect"]["rows"] == answers["cut"]["rows"]
    tokens = {host: {seen.token for seen in hub.requests("o/redirect") if seen.host == host} for host in ("hub", "cdn")}
    assert tokens == {"hub": {f"Bearer {TOKEN}"}, "cdn": {None}}


def test_a_mirror_is_never_asked_for_the_xet_protocol(answers: dict[str, Any], hub: LoopbackHub) -> None:
    assert answers["xet"]["rows"] == answers["cut"]["rows"]
    assert [seen for seen in hub.requests("o/xet") if "xet-read-token" in seen.path] == []


def test_the_token_stays_here_unless_it_is_to_be_sent(answers: dict[str, Any], hub: LoopbackHub) -> None:
    """The job that sends it runs between the others in one process: the choice must not outlive its call."""
    assert answers["redirect"]["rows"]
    assert {seen.token for seen in hub.seen if "o/redirect" not in seen.path} == {None}


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        pytest.param("gated", "o/gated is gated", "--send-token", id="gated"),
        pytest.param("limit", "no more requests for now (HTTP 429)", "wait 7 s", id="too-many-requests"),
        pytest.param("failing", "answered HTTP 503", "try again", id="server-error"),
        pytest.param("script", "read by a script of its own", "--revision refs/convert/parquet", id="loading-script"),
        pytest.param("several", "several parts: birds, boats", "--dataset o/parts:birds", id="several-parts"),
        pytest.param("near part", "no part 'bird'", "did you mean 'birds'?", id="unknown-part"),
        pytest.param("absent", "has no data set o/nothing, or it is private", "check the spelling", id="not-there"),
        pytest.param("no id", "'o/too/many' is no data set id", "owner/name", id="no-id"),
        pytest.param("near split", "no split 'vall'", "did you mean 'val'?", id="unknown-split"),
        pytest.param("revision", "no revision 'v9'", "--revision main", id="unknown-revision"),
        pytest.param("other hub", "cannot change to https://huggingface.co", "HF_ENDPOINT", id="bound-elsewhere"),
    ],
)
def test_what_a_hub_refuses_is_one_message_with_a_hint(
    answers: dict[str, Any], name: str, message: str, hint: str
) -> None:
    answer = answers[name]
    assert answer["error"] == "HubError"
    assert message in answer["message"]
    assert hint in answer["hint"]
    assert not [word for word in ("urllib", "httpx", "Traceback", "Client Error") if word in str(answer)]
    assert answer["seconds"] < FOUND_WITHIN_S


def test_a_part_of_a_data_set_is_chosen_by_name(answers: dict[str, Any]) -> None:
    assert len(answers["part"]["rows"]["train"]) == 1


def test_local_folders_and_files_are_read_the_same_way(answers: dict[str, Any], source: Path) -> None:
    assert answers["folder"]["rows"] == {"test": stored_rows(source, TEST)}
    assert answers["file"]["rows"] == {"val": stored_rows(source, VAL)}
    assert "does not exist" in answers["no folder"]["message"]


def test_offline_the_cache_alone_is_read_and_what_it_lacks_is_named(
    answers: dict[str, Any], hub: LoopbackHub, home: Path
) -> None:
    before = len(hub.seen)
    jobs = [
        job("whole", "Kangheng/refcocog"),
        job("kept", "o/xet", splits=["val"]),
        job("partly", "o/xet"),
        job("never", "o/parts2"),
    ]
    offline = run(JOBS_SCRIPT, hub.url, home, given=jobs, HF_HUB_OFFLINE="1")
    assert offline["whole"]["rows"] == answers["whole"]["rows"]
    assert offline["whole"]["revision"] == answers["whole"]["revision"]
    assert offline["kept"]["rows"] == answers["xet"]["rows"]
    assert offline["partly"]["message"] == "HF_HUB_OFFLINE is set, and the cache holds no test of o/xet"
    assert offline["partly"]["hint"] == "--split val"
    assert "does not hold the data set o/parts2" in offline["never"]["message"]
    assert len(hub.seen) == before


def test_a_closed_port_fails_at_once_and_names_the_ways_out(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        jobs = [job("data set", "o/x"), ("model", "model", {"name": "o/y"})]
        answers = run(JOBS_SCRIPT, url, tmp_path, given=jobs)
    for answer in answers.values():
        assert answer["message"] == f"cannot reach {url} (Connection refused)"
        assert "export HF_ENDPOINT=https://hf-mirror.com" in answer["hint"]
        assert "HF_HUB_OFFLINE=1" in answer["hint"]
        assert answer["seconds"] < FOUND_WITHIN_S


def test_an_endpoint_that_never_answers_or_is_no_hub_does_not_hang(tmp_path: Path) -> None:
    patient = JOBS_SCRIPT.replace("results = {}", "hub.PROBE_TIMEOUT_S = 0.3\nresults = {}")
    with serving({}) as strange:
        strange.faults.no_hub = True
        strange.faults.silent_s, strange.faults.silent = 3, {"o/silent"}
        answers = run(patient, strange.url, tmp_path, given=[job("page", "o/x"), job("silent", "o/silent")])
    page, silent = answers["page"], answers["silent"]
    assert "does not speak the hub's protocol" in page["message"]
    assert silent["message"] == f"cannot reach {strange.url} (no answer in time)"
    assert silent["seconds"] < FOUND_WITHIN_S


MODEL_SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, "tests")
import torch
from published_model import make_published_model
from safetensors.torch import load_file
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from transformers.utils.logging import disable_progress_bar
from qwenft.core.errors import HubError
from qwenft.model.fetch import model_folder  # after huggingface_hub was imported: the switches must still take effect

disable_progress_bar()
folder, name = make_published_model(Path(sys.argv[1])), "Qwen/Qwen2.5-VL-3B-Instruct"
events = []
cached = model_folder(name, emit=events.append)
model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(cached, dtype="auto", output_loading_info=True)
processor = AutoProcessor.from_pretrained(cached)
published = {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}
ours = {key.replace("model.language_model.", "model.").replace("model.visual.", "visual."): value
        for key, value in model.state_dict().items() if key != "lm_head.weight"}
try:
    model_folder("o/none")
except HubError as error:
    refused = [type(error).__name__, str(error)]
print(json.dumps({
    "info": {key: sorted(map(str, value)) for key, value in info.items()},
    "equal": sorted(ours) == sorted(published) and all(torch.equal(ours[key], published[key]) for key in ours),
    "names": sorted(published),
    "dtype": str(model.dtype),
    "tied": model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr(),
    "image token": [processor.tokenizer.convert_tokens_to_ids("<|image_pad|>"), model.config.image_token_id],
    "refused": refused,
}))
"""


def test_the_3b_model_loads_by_name_from_its_published_files(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    with serving({"models/Qwen/Qwen2.5-VL-3B-Instruct": folder}) as hub:  # the child writes it before it asks
        hub.faults.xet = {"Qwen/Qwen2.5-VL-3B-Instruct"}
        quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_TOKEN": TOKEN}
        answer = run(MODEL_SCRIPT, hub.url, tmp_path / "home", str(folder), **quiet)
        assert {seen.token for seen in hub.seen} == {None}
        assert [seen for seen in hub.seen if "xet-read-token" in seen.path] == []
        shards = [name for name in hub.fetched("Qwen/Qwen2.5-VL-3B-Instruct") if name.endswith(".safetensors")]
    assert sorted(shards) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert answer["info"] == {key: [] for key in answer["info"]}
    assert answer["equal"]
    assert {"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "visual.blocks.1.attn.qkv.bias"} <= set(
        answer["names"]
    )
    assert answer["dtype"] == "torch.bfloat16"
    assert answer["tied"]
    assert answer["image token"][0] == answer["image token"][1]
    assert answer["refused"][0] == "HubError"
    assert "has no model o/none, or it is private" in answer["refused"][1]


def test_the_stand_in_has_the_published_config_keys() -> None:
    from published_model import CONFIG, SHARED

    published = SHARED / "config-3b.json"
    keys = json.loads(published.read_text()) if published.is_file() else CONFIG
    assert list(CONFIG) == list(keys)
    assert list(CONFIG["vision_config"]) == list(keys["vision_config"])
    assert "text_config" not in CONFIG


@pytest.fixture
def fresh() -> Iterator[None]:
    """A process in which no hub was chosen yet; what the test sets is undone."""
    chosen = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "DATASETS_"))}
    with (
        mock.patch.dict(os.environ, chosen, clear=True),
        mock.patch.dict(sys.modules, {"huggingface_hub.constants": None, "datasets.config": None}),  # type: ignore[dict-item]
    ):
        yield


@pytest.mark.usefixtures("fresh")
def test_a_mirror_gets_no_token_and_nothing_goes_to_other_hosts() -> None:
    assert open_hub("https://hf-mirror.com/") == HubAccess("https://hf-mirror.com", mirror=True, token=False)
    told = {name: os.environ[name] for name in ("HF_ENDPOINT", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY")}
    assert told == {
        "HF_ENDPOINT": "https://hf-mirror.com",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    assert os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"
    assert os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] == "0"
    assert open_hub(send_token=True).token is None  # HF_ENDPOINT still names the mirror
    assert os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "0"


@pytest.mark.usefixtures("fresh")
def test_the_public_hub_keeps_its_own_ways() -> None:
    assert open_hub() == HubAccess(PUBLIC_HUB, mirror=False, token=None)
    assert not {"HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_IMPLICIT_TOKEN"} & set(os.environ)


@pytest.mark.usefixtures("fresh")
def test_a_library_that_is_loaded_already_gets_the_switches_too() -> None:
    loaded = SimpleNamespace(ENDPOINT="https://hf-mirror.com", HF_HUB_DISABLE_XET=False)
    with mock.patch.dict(sys.modules, {"huggingface_hub.constants": loaded}):  # type: ignore[dict-item]
        open_hub("https://hf-mirror.com")
    assert loaded.HF_HUB_DISABLE_XET is True


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("address", "hint"),
    [
        pytest.param("hf-mirror.com", "--hf-endpoint https://hf-mirror.com", id="no-scheme"),
        pytest.param("ftp://hf-mirror.com", "--hf-endpoint https://hf-mirror.com", id="other-scheme"),
        pytest.param("https://user:word@hf-mirror.com", "hf auth login", id="password"),
    ],
)
def test_an_address_that_is_none_is_refused_and_never_repeats_a_password(address: str, hint: str) -> None:
    with pytest.raises(HubError) as caught:
        open_hub(address)
    assert hint in caught.value.hint
    assert "word" not in str(caught.value).replace("password", "")


def test_an_error_of_our_own_passes_the_border_unchanged() -> None:
    ours = HubError("said already")
    with pytest.raises(HubError) as caught, hub_errors("o/x", HubAccess(PUBLIC_HUB, mirror=False, token=None)):
        raise ours
    assert caught.value is ours


def test_a_full_disk_is_not_taken_for_a_dead_network() -> None:
    access = HubAccess(PUBLIC_HUB, mirror=False, token=None)
    with pytest.raises(HubError, match="No space left on device") as caught, hub_errors("o/x", access):
        raise OSError(28, "No space left on device", "blob")
    assert "HF_HOME" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "split"),
    [
        pytest.param("val-00000-of-00001.parquet", "val", id="shard"),
        pytest.param("testA.parquet", "testA", id="refcoco-test"),
        pytest.param("train_small.parquet", "train_small", id="with-a-tail"),
        pytest.param("trainers.parquet", "all", id="only-looks-like-it"),
        pytest.param("birds.parquet", "all", id="no-split"),
    ],
)
def test_a_lone_file_is_named_after_its_split(name: str, split: str) -> None:
    assert split_of(Path(name)) == split


def test_choosing_a_hub_imports_none_of_its_libraries() -> None:
    begun = time.monotonic()
    script = (
        "import json, sys; import qwenft.prepare.sources.hub, qwenft.core.hub as h; h.open_hub();"
        "print(json.dumps([m for m in ('datasets', 'huggingface_hub', 'pyarrow', 'numpy') if m in sys.modules]))"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(child.stdout) == []
    assert core_hub.__doc__ and time.monotonic() - begun < FOUND_WITHIN_S
