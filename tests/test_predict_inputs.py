"""What predict is asked: pictures by every name they can have, lines of stdin, addresses with their limits."""

import json
import re
import shlex
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import typer
from PIL import Image
from prepare_inputs import picture

from qwenft.cli import app
from qwenft.core.errors import DataError, UsageError
from qwenft.core.predictions import Question
from qwenft.predict import fetch
from qwenft.predict.fetch import fetched
from qwenft.predict.inputs import make_questions

PNG = picture(1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures in two folders, one with a bracket in its name, and a text."""
    for name in ("a.png", "b[1].png", "deep/c.PNG"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


NAMED = [
    ("a file", ["in/a.png"], ["a.png"]),
    ("two files", ["in/deep/c.PNG", "in/a.png"], ["c.PNG", "a.png"]),
    ("a folder, not those in it", ["in"], ["a.png", "b[1].png"]),
    ("a glob", ["in/*.png"], ["a.png", "b[1].png"]),
    ("a glob into folders", ["in/**/*.PNG"], ["c.PNG"]),
    ("a name that looks like a glob", ["in/b[1].png"], ["b[1].png"]),
    ("a missing file stays, to be counted", ["in/a.png", "in/nowhere.png"], ["a.png", "nowhere.png"]),
]


@pytest.mark.parametrize(("images", "names"), [row[1:] for row in NAMED], ids=[row[0] for row in NAMED])
def test_pictures_are_named_in_every_usual_way(folder: Path, images: list[str], names: list[str]) -> None:
    questions = make_questions(images, "find the dog")
    assert [question.image.name for question in questions] == names
    assert all(question.image.is_absolute() and question.query == "the dog" for question in questions)


@pytest.mark.parametrize(
    ("images", "says"),
    [(["in/*.webp"], r"no file fits .*\*\.webp"), (["in/deep/empty"], "holds no picture")],
    ids=["glob", "folder"],
)
def test_what_names_no_picture_is_refused(folder: Path, images: list[str], says: str) -> None:
    (folder / "in" / "deep" / "empty").mkdir()
    with pytest.raises(DataError, match=says) as caught:
        make_questions(images, "the dog")
    assert caught.value.hint


def test_a_prompt_of_ones_own_is_sent_in_place_of_a_text() -> None:
    (question,) = make_questions(["a.png"], None, "caption", ask="How many dogs are there?")
    assert (question.ask, question.query, question.task) == ("How many dogs are there?", None, "caption")
    with pytest.raises(UsageError, match="both TEXT and --ask"):
        make_questions(["a.png"], "the dog", ask="How many dogs?")


LINES = [
    ("a path", "in/a.png", ("a.png", "grounding", "the cat", (), "", "")),
    ("own query", '{"image": "in/a.png", "query": "find the dog"}', ("a.png", "grounding", "the dog", (), "", "")),
    (
        "own task and categories",
        '{"image": "in/a.png", "task": "detection", "categories": ["dog", "猫"], "id": "q7"}',
        ("a.png", "detection", None, ("dog", "猫"), "", "q7"),
    ),
    (
        "categories with commas",
        '{"image": "a.png", "task": "detection", "categories": "dog，猫"}',
        ("a.png", "detection", None, ("dog", "猫"), "", ""),
    ),
    ("own prompt", '{"image": "a.png", "ask": "Where?"}', ("a.png", "grounding", "the cat", (), "Where?", "")),
]


@pytest.mark.parametrize(("line", "asked"), [row[1:] for row in LINES], ids=[row[0] for row in LINES])
def test_a_line_of_stdin_is_a_path_or_says_what_is_asked(line: str, asked: tuple) -> None:
    (q,) = make_questions(["-"], "the cat", lines=["\n", f"{line}\n"])
    assert (q.image.name, q.task, q.query, q.categories, q.ask, q.id) == asked


BAD_LINES = [
    ("no JSON", '{"image": "a.png"', "line 2: broken JSON", "image"),
    ("an unknown key", '{"image": "a.png", "qery": "dog"}', "line 2: unknown key 'qery'", "'query'"),
    ("no picture", '{"query": "dog"}', "line 2: it names no image", "image"),
    ("an unknown task", '{"image": "a.png", "task": "detect"}', "line 2: unknown task 'detect'", "'detection'"),
    ("nothing asked", '{"image": "a.png", "query": " "}', "line 2: TEXT is missing", "find the dog"),
    ("a NUL", '{"image": "a\\u0000.png", "query": "dog"}', "line 2: it names no image", "image"),
]


@pytest.mark.parametrize(("line", "says", "hint"), [row[1:] for row in BAD_LINES], ids=[row[0] for row in BAD_LINES])
def test_an_odd_line_is_named(line: str, says: str, hint: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        make_questions(["-"], None, lines=['{"image": "a.png", "query": "dog"}', line])
    assert hint in caught.value.hint


def test_stdin_stands_alone_and_holds_something() -> None:
    with pytest.raises(UsageError, match="name no others"):
        make_questions(["-", "a.png"], "the dog")
    with pytest.raises(DataError, match="stdin is empty"):
        make_questions(["-"], "the dog", lines=[])


# Addresses


class Pictures(BaseHTTPRequestHandler):
    """Serves what an address may lead to."""

    def do_GET(self) -> None:
        kind, body, status, extra = "image/png", PNG, 200, {}
        if self.path.startswith("/to?"):
            status, extra, body = 302, {"Location": self.path[4:]}, b""
        elif self.path == "/circle":
            status, extra, body = 302, {"Location": "/circle"}, b""
        elif self.path == "/page.png":
            kind, body = "text/html; charset=utf-8", b"<html></html>"
        elif self.path == "/long.png":
            extra = {"Content-Length": str(10**12)}
        elif self.path == "/absent.png":
            status = 404
        elif self.path == "/endless.png":
            self.endless()
            return
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **extra}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def endless(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.end_headers()
        try:
            while not self.server.stopping.wait(0.01):  # type: ignore[attr-defined]
                self.wfile.write(b"x" * 100)
        except OSError:
            return

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def pictures_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    server.stopping = threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.stopping.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pictures_server() as address:
        yield address


def test_a_picture_from_an_address_lies_in_a_folder_of_its_own_and_is_gone_afterwards(site: str) -> None:
    said: list[str] = []
    questions = make_questions([f"{site}/some%2F..%2Fdog.png?size=9", f"{site}/to?/real.png"], "the dog")
    assert [question.name for question in questions] == [f"{site}/some%2F..%2Fdog.png?size=9", f"{site}/to?/real.png"]
    with fetched(questions, lambda event: said.append(str(event.get("text", "")))) as (files, failed):
        assert failed == {}
        paths = list(files.values())
        assert [Image.open(path).size for path in paths] == [(160, 120)] * 2
        assert paths[0].name == "dog.png"
    assert not any(path.exists() for path in paths)
    assert any(f"fetched {questions[0].name}: 0.0 MB" in text for text in said)
    assert any(f"(from {site}/real.png)" in text for text in said), "where a redirect led to is said"


REFUSED = [
    ("a file through a redirect", "/to?file:///etc/passwd", "HTTP 302, a redirect that is not followed"),
    ("ftp through a redirect", "/to?ftp://127.0.0.1/a.png", "HTTP 302, a redirect that is not followed"),
    ("redirects in a circle", "/circle", "HTTP 302, a redirect that is not followed"),
    ("a page", "/page.png", "no picture but text/html"),
    ("a length over the limit", "/long.png", "over 67.1 MB"),
    ("more than the limit, unannounced", "/endless.png", "over 0.0 MB"),
    ("nothing there", "/absent.png", "HTTP 404"),
]


@pytest.mark.parametrize(("path", "says"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_no_picture_or_too_much_is_refused(
    site: str, monkeypatch: pytest.MonkeyPatch, path: str, says: str
) -> None:
    if path == "/endless.png":
        monkeypatch.setattr(fetch, "MAX_BYTES", 5_000)
    with fetched([question_of(site + path)], lambda _: None) as (files, failed):
        assert files == {}
        assert says in str(failed[site + path])
        assert (site + path) in str(failed[site + path])


def question_of(address: str) -> Question:
    return Question(Path(address), "grounding", "the dog", name=address)


def test_a_server_that_drips_or_is_silent_is_left_in_time(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "WHOLE_S", 0.2)
    monkeypatch.setattr(fetch, "CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = f"http://127.0.0.1:{silent.getsockname()[1]}/a.png"
        questions = [question_of(f"{site}/endless.png"), question_of(mute), question_of(f"{site}/good.png")]
        with fetched(questions, lambda _: None) as (files, failed):
            assert list(files) == [f"{site}/good.png"]
            assert "takes over 0.2 s" in str(failed[f"{site}/endless.png"])
            assert "no answer within 0.2 s" in str(failed[mute])


def test_an_address_with_a_password_is_not_asked() -> None:
    address = "http://me:secret@127.0.0.1:9/a.png"
    with fetched([question_of(address)], lambda _: None) as (_, failed):
        assert "password" in str(failed[address])


def test_lines_as_json_programs_write_them_are_read_back() -> None:
    lines = [json.dumps({"image": f"{n}.png", "query": "der Hund, größer"}) + "\r\n" for n in range(3)]
    assert {q.query for q in make_questions(["-"], None, lines=lines)} == {"der Hund, größer"}


def test_every_command_of_the_page_parses() -> None:
    group = typer.main.get_command(app)
    page = (Path(__file__).parents[1] / "docs" / "predict.md").read_text(encoding="utf-8")
    typed = [
        line.rpartition("| ")[2]
        for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(typed) > 4
    for line in typed:
        command, *words = shlex.split(line)[1:]
        group.commands[command].make_context(command, words)
