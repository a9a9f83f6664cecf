"""A page that is served for a test: a model that says what the test wants, and requests as a browser makes them."""

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from qwenft.app.run import Served, serve_page
from qwenft.core.predictions import Detected, Prediction, Question
from qwenft.core.runs import Contract, Threshold

CONTRACT = Contract(
    "tiny", "c" * 64, "w" * 64, 3136, 50176, tasks=("grounding",), data="scenes",
    thresholds={"grounding": Threshold(0.259, "scenes", "val", 30)},
)  # fmt: skip


@dataclass
class Scripted:
    """Stands for a Predictor: labels each box with what was asked for, and says it in the raw answer too."""

    adapter: Path | None
    contract: Contract = CONTRACT
    asked: list[Question] = field(default_factory=list)

    def answer(self, questions: Sequence[Question], *, emit: object) -> Iterator[Prediction]:
        for question in questions:
            self.asked.append(question)
            if question.task == "caption":
                yield Prediction(question, "ok", (), text="a <b>caption</b>", prompt="")
                continue
            label = question.query or question.categories[0]
            boxes = [Detected((10, 12, 60, 80), label, 0.9), Detected((30, 40, 90, 100), label, 0.3)]
            kept = tuple(boxes) if self.adapter else (Detected((0, 0, 5, 5), label, 0.6),)
            yield Prediction(question, "ok", kept, text=f"answer: {label}", prompt="")

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        yield


def make_run(root: Path, name: str = "first") -> None:
    """A run that can be chosen; its adapter has a contract and no weights."""
    adapter = root / "runs" / name / "adapter"
    adapter.mkdir(parents=True)
    (adapter.parent / "events.jsonl").write_text("")
    CONTRACT.write(adapter)


@contextmanager
def scripted_page(root: Path) -> Iterator[tuple[Served, Scripted]]:
    """The page of the run `first` under `root`, served with a scripted model."""
    from qwenft.predict.generate import Predictor

    model = Scripted(root / "runs" / "first" / "adapter")
    with ExitStack() as until_the_end:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Predictor, "load", lambda *_, **__: model)
            served = until_the_end.enter_context(serve_page("first", root=root, port=0, gpus="cpu"))
        yield served, model


class Visitor:
    """One browser tab, as the server sees it."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.session = uuid.uuid4().hex[:10]
        self._open = build_opener(ProxyHandler({})).open
        functions = json.loads(self.get("/config"))["dependencies"]
        self._numbers = {function["api_name"]: function["id"] for function in functions}

    def get(self, path: str) -> str:
        return self.request(path)[1].decode()

    def request(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """Status and content."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            with self._open(Request(self.address + path, body, named), timeout=30) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            return error.code, error.read()

    def post(self, path: str, value: object, **headers: str) -> tuple[int, bytes]:
        return self.request(path, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def upload(self, content: bytes, name: str = "photo.png") -> tuple[int, str]:
        """Status, and the path that the server gave the file or what it said."""
        head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        form = head.encode() + content + b"\r\n--b--\r\n"
        status, said = self.request("/gradio_api/upload", form, Content_Type="multipart/form-data; boundary=b")
        return status, json.loads(said)[0] if status == 200 else said.decode()

    def call(self, name: str, *data: object) -> list[Any]:
        """The outputs of one of the page's functions in the end."""
        status, said = self.join(name, *data)
        assert status == 200, said
        for line in self.get(f"/gradio_api/queue/data?session_hash={self.session}").splitlines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                assert message["success"], message
                return message["output"]["data"]
        raise AssertionError("it was not answered")

    def join(self, name: str, *data: object) -> tuple[int, bytes]:
        asked = {"data": list(data), "fn_index": self._numbers[name], "session_hash": self.session}
        return self.post("/gradio_api/queue/join", asked)

    def ask(self, path: str | None, text: str, task: str = "grounding", threshold: float = 0) -> list[Any]:
        return self.call("ask", path and file_of(path), text, task, threshold)


def file_of(path: str) -> dict[str, Any]:
    """A file as the page names it."""
    return {"path": path, "orig_name": Path(path).name, "meta": {"_type": "gradio.FileData"}}
