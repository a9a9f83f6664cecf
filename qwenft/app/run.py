"""The body of `app`: the model is loaded, and the page served on this machine until it is stopped."""

import errno
import importlib.util
import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from qwenft.app.ask import Asker, Example, examples_of
from qwenft.app.gate import LOCAL, App, Gate
from qwenft.core.errors import DataError, QwenftError, first_line
from qwenft.core.events import Emit, ignore, note, warning
from qwenft.core.runs import Answerer, choose_answerer
from qwenft.core.samples import open_dataset
from qwenft.model.fetch import check_answerable

HOST: Final = "127.0.0.1"
PORT: Final = 7860
"""gradio's own."""
PATIENCE_S: Final = 5
"""How long an end may take before it is said why."""
NO_GRADIO: Final = "the page needs gradio, which is not installed"
INSTALL: Final = "pip install 'qwenft[app]'"


@dataclass(frozen=True, slots=True)
class Served:
    """A page that is being served."""

    address: str
    shared: str | None
    """The public address, where one was asked for."""
    answerer: Answerer
    _thread: threading.Thread

    def wait(self) -> None:
        """Return when the page is no longer served; Ctrl-C comes through."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        adapter = self.answerer.adapter
        return {
            "address": self.address,
            **({"shared": self.shared} if self.shared else {}),
            "model": self.answerer.model,
            "run": self.answerer.run.name if self.answerer.run else None,
            "adapter": str(adapter.absolute()) if adapter else None,
        }


@contextmanager
def serve_page(
    run: str | None = None,
    model: str | None = None,
    *,
    data: str | None = None,
    gpus: str | None = None,
    port: int = PORT,
    share: bool = False,
    root: Path | None = None,
    emit: Emit = ignore,
) -> Iterator[Served]:
    """Inside the block the page is served on 127.0.0.1; at its end the server stops and all its files are removed.

    run, model: who answers, as in `find`.  data: whose questions are offered as examples; None: the data set of the
    run, or the only one there is.  port: 0 takes any that is free.  share: also make a public address, by gradio.
    Raises QwenftError where gradio is missing, the port is taken or no public address can be had; what `find` raises.
    """
    if importlib.util.find_spec("gradio") is None:
        raise QwenftError(NO_GRADIO, hint=INSTALL)
    chosen = choose_answerer(run, model, root)
    examples = _examples(data, chosen, root, emit)
    check_answerable(chosen.model, gpus)
    with _listening(port) as listener, _folder() as folder:
        # Beside the uploads: gradio hands out nothing else, wherever the data set lies.
        examples = [replace(one, picture=Path(shutil.copy(one.picture, folder))) for one in examples]
        emit(note(chosen.text()))
        from qwenft.predict.generate import Predictor  # torch, transformers: seconds, so only here

        asker = Asker(chosen, Predictor.load(chosen.model, chosen.adapter, gpus=gpus, emit=emit), emit)
        gate = _gate(asker, examples, folder)
        with _serving(gate, listener, emit) as thread:
            number = listener.getsockname()[1]
            shared = _shared(number, gate, emit) if share else None
            yield Served(f"http://{HOST}:{number}/", shared, chosen, thread)


def _examples(data: str | None, chosen: Answerer, root: Path | None, emit: Emit) -> list[Example]:
    """Raises DataError where a data set is named and cannot be opened."""
    trained_on = chosen.contract.data if chosen.contract else ""
    for name in (data,) if data else dict.fromkeys((trained_on or None, None)):
        try:
            return examples_of(open_dataset(name, root))
        except DataError as error:
            if data:
                raise
            reason = error
    emit(note(f"no examples are shown ({reason}): --data names a data set"))
    return []


@contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    """A socket that is bound before seconds go into loading the model.  Raises QwenftError where the port is taken."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        if os.name == "posix":  # a port that was left a moment ago; elsewhere it would share one in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            why = "something else is served there" if taken else error.strerror or str(error)
            hint = f"qwenft app --port {port + 1}, or 0 for any that is free"
            raise QwenftError(f"port {port} of this machine cannot be used: {why}", hint=hint) from error
        yield listener


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for uploads and drawings, which gradio is told of and which is removed at the end."""
    settings = ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE")
    before = {name: os.environ.get(name) for name in (*settings, "GRADIO_ANALYTICS_ENABLED")}
    with tempfile.TemporaryDirectory(prefix="qwenft-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        os.environ.update(dict.fromkeys(settings, str(folder)), GRADIO_ANALYTICS_ENABLED="False")
        try:
            yield folder
        finally:
            for setting, value in before.items():
                os.environ.pop(setting, None)
                if value is not None:
                    os.environ[setting] = value


def _gate(asker: Asker, examples: list[Example], folder: Path) -> Gate:
    import gradio as gr
    from fastapi import FastAPI

    from qwenft.app.ask import MAX_FILE_BYTES
    from qwenft.app.page import STYLE, build_page

    page = build_page(asker, examples, folder)
    page.has_launched = True  # gradio looks where a file lies only in a page that it launched itself (6.31)
    page.state_session_capacity = 100
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    theme.set(body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300")
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None), page, "/", server_name=HOST,
        theme=theme, css=STYLE, max_file_size=MAX_FILE_BYTES, footer_links=[], run_history=False, show_error=False,
        allowed_paths=[], blocked_paths=[], root_path="", ssr_mode=False, mcp_server=False, pwa=False,
        enable_monitoring=False,
    )  # fmt: skip
    return Gate(app, folder)


@contextmanager
def _serving(app: App, listener: socket.socket, emit: Emit) -> Iterator[threading.Thread]:
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=1, server_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="page", daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield thread
    finally:
        # Open tabs hold a connection that ends only by being cut, which uvicorn tells as an error.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        server.should_exit = True
        thread.join(PATIENCE_S)
        if thread.is_alive():
            emit(note("an answer is being made: it is finished first"))
        thread.join()


def _shared(port: int, gate: Gate, emit: Emit) -> str:
    """A public address that leads here, by a program that gradio fetches.  Raises QwenftError."""
    from gradio.networking import setup_tunnel

    try:
        address = setup_tunnel(HOST, port, secrets.token_urlsafe(32), None, None)
    except (OSError, RuntimeError, ValueError) as error:
        raise QwenftError(f"no public address could be had: {first_line(error)}", hint="leave out --share") from error
    gate.hosts = LOCAL | {urlsplit(address).hostname or ""}
    emit(warning(f"whoever has the address {address} can ask this model, for a week at most"))
    return address
