"""The page: what is asked reaches the model within limits, what it says is shown as it is, and nothing else is read."""

import io
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from app_page import Scripted, Visitor, file_of, make_run, scripted_page
from evaluations import HOSTILE
from PIL import Image
from terminal import QWENFT
from training import train_here

from qwenft.app import ask, gate, run
from qwenft.app.ask import Asker, examples_of, question_of
from qwenft.app.page import WAITING
from qwenft.app.shown import escaped, show
from qwenft.core.errors import DataError, QwenftError, RunError
from qwenft.core.predictions import Detected, Prediction, Question
from qwenft.core.runs import choose_answerer
from qwenft.core.samples import PreparedDataset
from qwenft.predict.find import find

SIZE = (120, 110)
WORDS, TEXT, DRAWN, COCO = 1, 2, 3, 4
"""Places of a panel's parts; its picture is the first."""


def png(size: tuple[int, int] = SIZE, colour: str = "white") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, scenes: PreparedDataset) -> Iterator[tuple[str, Scripted]]:
    """A page in an environment that would open gradio's own door wide."""
    root = tmp_path_factory.mktemp("app")
    make_run(root)
    (root / "data").mkdir()
    (root / "data" / "scenes").symlink_to(scenes.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_SHARE", "True")
        patch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
        patch.setenv("GRADIO_ALLOWED_PATHS", "/")
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
        with scripted_page(root) as (page, model):
            yield page.address, model


@pytest.fixture
def visitor(served: tuple[str, Scripted]) -> Visitor:
    return Visitor(served[0])


@pytest.fixture
def model(served: tuple[str, Scripted]) -> Scripted:
    served[1].asked.clear()
    return served[1]


def panels(outputs: list[Any]) -> list[list[Any]]:
    """The parts of each panel, out of the outputs of `ask` (a state and a message first) or `again` (a message)."""
    parts = outputs[len(outputs) % 5 :]
    return [parts[at : at + 5] for at in range(0, len(parts), 5)]


def fetched(visitor: Visitor, file: dict[str, Any]) -> bytes:
    status, content = visitor.request(file["url"].removeprefix(visitor.address))
    assert status == 200
    return content


# What is asked, and what is shown


def test_a_picture_goes_up_and_the_boxes_of_adapter_and_base_come_back(visitor: Visitor, model: Scripted) -> None:
    _, path = visitor.upload(png(), "at home.png")
    adapter, base = panels(visitor.ask(path, "find the dog"))
    assert [(q.query, q.task, q.shown_image) for q in model.asked] == [("the dog", "grounding", "at home.png")] * 2
    assert (
        "2 boxes." in adapter[WORDS] and "<td>0.90</td><td>10</td><td>12</td><td>60</td><td>80</td>" in adapter[WORDS]
    )
    assert "1 box." in base[WORDS]
    assert adapter[TEXT] == "answer: the dog"
    drawn = Image.open(io.BytesIO(fetched(visitor, adapter[DRAWN]["value"]))).convert("RGB")
    assert drawn.size == (480, 440)  # four times as large: small pictures are enlarged to be read
    assert drawn.getpixel((4 * 10, 4 * 60)) != (255, 255, 255)
    assert drawn.getpixel((4 * 115, 4 * 105)) == (255, 255, 255)
    coco = json.loads(fetched(visitor, adapter[COCO]["value"]))
    assert coco["images"] == [{"id": 1, "file_name": "at home.png", "width": 120, "height": 110}]
    assert coco["categories"] == [{"id": 1, "name": "the dog"}]
    assert [(a["id"], a["bbox"], a["area"], a["score"]) for a in coco["annotations"]] == [
        (1, [10, 12, 50, 68], 3400, 0.9), (2, [30, 40, 60, 60], 3600, 0.3),
    ]  # fmt: skip
    assert {part["value"]["orig_name"] for part in (adapter[DRAWN], base[COCO])} == {
        "at home-adapter.png", "at home-base.coco.json",
    }  # fmt: skip


def test_the_threshold_hides_boxes_without_asking_the_model_again(visitor: Visitor, model: Scripted) -> None:
    _, path = visitor.upload(png())
    visitor.ask(path, "the dog")
    for threshold, said in (
        (0.5, ("1 box, 1 hidden.", "1 box.")),
        (0.95, ("0 boxes, 2 hidden.", "0 boxes, 1 hidden.")),
    ):
        adapter, base = panels(visitor.call("again", None, threshold))
        assert said[0] in adapter[WORDS] and said[1] in base[WORDS]
        kept = json.loads(fetched(visitor, adapter[COCO]["value"]))["annotations"]
        assert [a["score"] for a in kept] == ([0.9] if threshold == 0.5 else [])
    assert len(model.asked) == 2


def test_the_threshold_begins_where_eval_put_it(visitor: Visitor) -> None:
    (slider,) = [part for part in json.loads(visitor.get("/config"))["components"] if part["type"] == "slider"]
    assert slider["props"]["value"] == 0.25  # of 0.259: a box that stands on it is shown
    assert slider["props"]["info"] == "0.25 was chosen on scenes/val."


def test_a_caption_has_words_and_no_coco_file(visitor: Visitor, model: Scripted) -> None:
    _, path = visitor.upload(png())
    adapter, _ = panels(visitor.ask(path, "left over", "caption"))
    assert escaped("a <b>caption</b>") in adapter[WORDS]
    assert adapter[COCO] == {"value": None, "interactive": False, "__type__": "update"}
    assert model.asked[0].query is None


def test_texts_of_the_model_are_shown_and_do_nothing(visitor: Visitor, model: Scripted) -> None:
    _, path = visitor.upload(png())
    for text in HOSTILE[:4]:
        adapter, _ = panels(visitor.ask(path, text, "detection"))
        label = text.partition(",")[0]
        assert f"<td>{escaped(label)}</td>" in adapter[WORDS]
        assert "<script" not in adapter[WORDS] and "<img" not in adapter[WORDS] and "{" not in adapter[WORDS]
        assert adapter[TEXT] == f"answer: {label}"


def test_a_label_that_no_server_could_send_is_shown_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    boxes = tuple(Detected((5, 5, 50, 50), text, 0.5) for text in HOSTILE)
    question = Question(tmp_path / "a.png", "detection", categories=tuple(HOSTILE), name="a.png")
    shown = show(Prediction(question, "ok", boxes, text="\n".join(HOSTILE), prompt=""), 0, tmp_path, "base")
    (shown.words + shown.text).encode()
    assert shown.coco and len(json.loads(shown.coco.read_text())["annotations"]) == len(HOSTILE)
    assert escaped("w" * 400) in shown.words and "很抱歉" in shown.text


def test_examples_are_held_out_questions_and_can_be_asked(
    visitor: Visitor, model: Scripted, scenes: PreparedDataset
) -> None:
    first = examples_of(scenes)[0]
    assert first.text in {sample.query for sample in scenes.samples(scenes.held_out or "")}
    assert len({one.picture for one in examples_of(scenes)}) == min(ask.NUM_EXAMPLES, 4)
    clicked = {
        "data": [],
        "fn_index": visitor._numbers["example"],
        "session_hash": "s",
        "event_data": {"index": 0, "value": None},
    }
    status, said = visitor.post("/gradio_api/run/predict", clicked)
    assert status == 200, said
    picture, text, task = json.loads(said)["data"]
    assert (text, task) == (first.text, "grounding")
    assert not Path(picture["path"]).is_relative_to(scenes.path)  # a copy: the data set is no folder of the page
    visitor.ask(picture["path"], text, task)
    assert model.asked[0].query == first.text


def large_png() -> bytes:
    """A few kilobytes that are 64 million px."""
    buffer = io.BytesIO()
    Image.new("1", (8000, 8000)).save(buffer, "PNG")
    return buffer.getvalue()


REFUSED = [
    pytest.param(None, "the dog", "grounding", "there is no picture yet", id="no picture"),
    pytest.param(png(), "  ", "grounding", "there is no text yet: what is to be found?", id="empty text"),
    pytest.param(png(), "dog" * 200, "grounding", "the text has 600 characters, over 500", id="long text"),
    pytest.param(png(), "the dog", "segmentation", "unknown task", id="unknown task"),
    pytest.param(b"<html>no</html>", "the dog", "grounding", "photo.png: ", id="no picture inside"),
    pytest.param(png()[:-60], "the dog", "grounding", "photo.png: ", id="torn picture"),
    pytest.param(large_png(), "the dog", "grounding", "photo.png has 8000 x 8000 px", id="too many pixels"),
]


@pytest.mark.parametrize(("content", "text", "task", "message"), REFUSED)
def test_what_cannot_be_asked_is_answered_with_what_is_wrong(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch, content: bytes | None, text: str, task: str, message: str
) -> None:
    if message == "photo.png: ":  # the real decoder, as the real model would call it

        def opening(_: Scripted, questions: list[Question], **__: object) -> Iterator[Any]:
            from qwenft.prepare.pictures import open_upright

            open_upright(questions[0].image)
            yield from ()

        monkeypatch.setattr(Scripted, "answer", opening)
    path = visitor.upload(content)[1] if content is not None else None
    _, said, *parts = visitor.ask(path, text, task)
    assert f"Not answered: {message}" in said["value"]
    assert "qwenft-" not in said["value"]  # where the server keeps it is nobody's business
    assert parts[0] is None and parts[5] is None


def test_a_file_over_the_limit_is_refused_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "MAX_FILE_BYTES", 100)
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(DataError, match=r"^a\.png has 120 x 110 px in .* MB: at most"):
        question_of(tmp_path / "a.png", "the dog", "grounding")


# Who may ask for what


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "{data}/manifest.json", "{folder}/../../etc/passwd", "{folder}/x/../../../etc/passwd", "{cwd}/x"],
)
def test_no_file_outside_the_upload_folder_is_readable(visitor: Visitor, scenes: PreparedDataset, path: str) -> None:
    folder = Path(visitor.upload(png())[1]).parents[1]
    path = path.format(data=scenes.path, folder=folder, cwd=Path.cwd() / ".gradio" / "cached_examples")
    status, said = visitor.request(f"/gradio_api/file={path}")
    assert status == 403 and b"root:" not in said
    status, said = visitor.join("ask", file_of(path), "the dog", "grounding", 0)
    assert (status, said) == (403, b"a file that was not uploaded is not read\n")


def test_gradio_itself_reads_no_other_file_where_the_gate_would_sleep(
    visitor: Visitor, scenes: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_names_foreign_file", lambda *_: False)
    picture = scenes.picture_path(scenes.samples("val")[0])
    with pytest.raises(AssertionError, match="'success': False"):
        visitor.ask(str(picture), "the dog")


@pytest.mark.parametrize(
    "picture",
    [
        pytest.param({"path": "http://127.0.0.1:1/x.png", "meta": {"_type": "gradio.FileData"}}, id="an address"),
        pytest.param({"path": None, "url": "data:image/png;base64,AAAA"}, id="pixels in the request"),
    ],
)
def test_nothing_is_fetched_or_decoded_before_the_page_has_looked(visitor: Visitor, picture: dict[str, Any]) -> None:
    assert visitor.join("ask", picture, "the dog", "grounding", 0)[0] == 403
    assert visitor.request("/gradio_api/file=http://127.0.0.1:1/x.png")[0] == 404


@pytest.mark.parametrize(
    "path",
    ["/monitoring", "/gradio_api/proxy=http://127.0.0.1:1/", "/gradio_api/vibe-code/", "/gradio_api/runs", "/docs"],
)
def test_routes_that_the_page_does_not_need_are_shut(visitor: Visitor, path: str) -> None:
    assert visitor.request(path)[0] == 404


def test_only_pages_of_this_machine_may_ask(visitor: Visitor) -> None:
    assert visitor.request("/", Host="localhost:7860")[0] == 200
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
        status, said = visitor.request("/", **headers)
        assert status == 403 and b"served to 127.0.0.1, localhost alone" in said
    assert (
        visitor.post("/gradio_api/queue/join", {}, Origin=visitor.address)[0] == 422
    )  # let through, then not a question


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [
        pytest.param(gate.UPLOAD, str(64 * 2**20), 413, id="an upload too large"),
        pytest.param("/gradio_api/queue/join", str(2**20), 413, id="a request too large"),
        pytest.param("/gradio_api/queue/join", None, 411, id="of unknown length"),
    ],
)
def test_a_request_is_bounded_before_it_is_read(visitor: Visitor, path: str, length: str | None, status: int) -> None:
    host, _, port = visitor.address.removeprefix("http://").partition(":")
    how = f"Content-Length: {length}" if length else "Transfer-Encoding: chunked"
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{how}\r\n\r\n".encode())
        assert connection.recv(100).startswith(f"HTTP/1.1 {status} ".encode())


def test_one_question_is_answered_at_a_time_and_few_may_wait(
    visitor: Visitor, model: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, at_once, most = threading.Event(), [0], [0]

    def slow(_: Scripted, questions: list[Question], **__: object) -> Iterator[Any]:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        go_on.wait(20)
        at_once[0] -= 1
        model.asked.extend(questions)
        yield from ()

    monkeypatch.setattr(Scripted, "answer", slow)
    _, path = visitor.upload(png())
    said = []
    for _ in range(WAITING + 4):
        said.append(visitor.join("ask", file_of(path), "the dog", "grounding", 0))
    statuses = [status for status, _ in said]
    assert 0 < statuses.count(503) <= 4 and statuses[0] == 200
    assert b"full" in said[-1][1]
    go_on.set()
    visitor.get(f"/gradio_api/queue/data?session_hash={visitor.session}")
    assert most == [1]
    assert len(model.asked) == 2 * statuses.count(200)


def test_what_the_page_loads_comes_from_itself_and_the_server_asks_nobody(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: (asked.append(host), real(host, *rest, **more))[1]
    )
    page = visitor.get("/")
    assert not [word for word in ("googleapis", "gstatic", "cdnjs", '<link rel="preconnect"') if word in page]
    assert '"analytics_enabled":false' in page.replace(" ", "")
    config = json.loads(visitor.get("/config"))
    assert config["analytics_enabled"] is False and not config.get("is_space")
    _, path = visitor.upload(png())
    visitor.ask(path, "the dog")
    assert set(asked) <= {"127.0.0.1"}
    with visitor._open(visitor.address, timeout=20) as answer:
        policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "http" not in policy


# From the command line


def test_what_is_wrong_is_said_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path)
    with pytest.raises(RunError, match="there is no run 'frist'") as error, run.serve_page("frist", root=tmp_path):
        pass
    assert error.value.hint == "did you mean 'first'?"
    with pytest.raises(DataError, match="nothing does not exist"), run.serve_page(data="nothing", root=tmp_path):
        pass
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(QwenftError, match=f"port {port} .* something else is served there") as error:
            run.serve_page("first", port=port, root=tmp_path).__enter__()
    assert error.value.hint.startswith(f"qwenft app --port {port + 1}")
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(QwenftError, match="needs gradio") as error, run.serve_page(root=tmp_path):
        pass
    assert error.value.hint == "pip install 'qwenft[app]'"


def test_a_public_address_is_made_only_when_asked_for_and_is_then_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradio import networking

    events: list[Any] = []
    door = gate.Gate(lambda *_: None, tmp_path)  # type: ignore[arg-type, return-value]
    monkeypatch.setattr(networking, "setup_tunnel", lambda host, *_: f"https://abc.gradio.live/{host}")
    assert run._shared(7860, door, events.append) == "https://abc.gradio.live/127.0.0.1"
    assert door.hosts == {"127.0.0.1", "localhost", "abc.gradio.live"}
    assert "whoever has the address" in events[0]["text"]

    def unreachable(*_: object) -> str:
        raise RuntimeError("Could not get share link from Gradio API Server.")

    monkeypatch.setattr(networking, "setup_tunnel", unreachable)
    with pytest.raises(QwenftError, match="no public address could be had: Could not get share link"):
        run._shared(7860, door, events.append)


def test_an_end_that_takes_long_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PATIENCE_S", 0.1)
    begun, go_on, events = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        go_on.wait(20)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await anyio.to_thread.run_sync(work)

    def emit(event: Any) -> None:
        events.append(event["text"])
        go_on.set()

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        run._serving(app, listener, emit),
        socket.create_connection(listener.getsockname()) as tab,
    ):
        tab.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert begun.wait(20)
    assert events == ["an answer is being made: it is finished first"]


def test_the_page_says_what_predict_says(workplace: Path) -> None:
    from qwenft.predict.generate import Predictor

    settings = {"learning_rate": 3e-3, "batch_size": 4, "accumulation": 1, "max_steps": 8}
    status, trained, events = train_here(workplace, "first", data="scenes", **settings)
    assert status == 0, events[-1]
    example = examples_of(PreparedDataset.open(workplace / "data" / "scenes"))[0]
    asker = Asker(choose_answerer("first", None, workplace), Predictor.load("tiny", trained.adapter, gpus="cpu"))
    assert asker.names == ("adapter of the run first", "base model tiny")
    twice = [list(asker.answers(question_of(example.picture, example.text, "grounding"))) for _ in range(2)]
    assert twice[0] == twice[1]
    expected = [
        find([example.picture], example.text, run=name, model="tiny", gpus="cpu", root=root)[0]
        for name, root in (("first", workplace), (None, workplace / "data"))
    ]
    assert [(a.objects, a.text, a.adapter) for a in twice[0]] == [(e.objects, e.text, e.adapter) for e in expected]
    assert twice[0][0].objects != twice[0][1].objects


def test_ctrl_c_ends_it_and_nothing_is_left(tmp_path: Path) -> None:
    command = [*QWENFT, "app", "--model", "tiny", "--gpus", "cpu", "--port", "0", "--json"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        said = json.loads(process.stdout.readline())
        visitor = Visitor(said["address"])
        _, path = visitor.upload(png())
        (panel,) = panels(visitor.ask(path, "the red star"))
        assert "1 box." in panel[WORDS]
        with visitor._open(f"{visitor.address}/gradio_api/heartbeat/{visitor.session}", timeout=60):  # an open tab
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest) == (130, "")
    assert (said["model"], said["run"], said["adapter"]) == ("tiny", None, None)
    assert "no examples are shown" in errors and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
