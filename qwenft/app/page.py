"""The page itself: fields, panels and what happens between them; gradio is loaded when it is built."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qwenft.app.ask import MAX_PIXELS, MAX_TEXT, Asker, Example, question_of
from qwenft.app.shown import Shown, escaped, problem, show
from qwenft.core.answer import Task
from qwenft.core.errors import DataError, QwenftError
from qwenft.core.predictions import Prediction
from qwenft.core.samples import TASKS, as_task

if TYPE_CHECKING:
    import gradio as gr

KEPT_S: Final = 3600
"""How long uploads, drawings and answers are kept."""
WAITING: Final = 8
"""Questions that may wait for their turn; the next one is told to come again."""
STYLE: Final = """
.gradio-container {max-width: 1440px !important}
.about h1 {font-size: 1.4rem; font-weight: 600; margin: 0}
.about p {margin: .2rem 0 0}
.problem {border-left: 3px solid #d33; padding: .3rem .6rem; margin: 0}
.words p {margin: 0; overflow-wrap: anywhere}
.rows {overflow-x: auto; max-height: 16rem; overflow-y: auto; margin-top: .4rem}
.rows table {border-collapse: collapse; font-size: var(--text-sm); font-variant-numeric: tabular-nums; width: 100%}
.rows th {font-weight: 400; color: var(--body-text-color-subdued)}
.rows :is(th, td) {padding: .2rem .35rem; text-align: right; border-bottom: 1px solid var(--border-color-primary)}
.rows :is(th, td):nth-child(2) {text-align: left; width: 100%; min-width: 5em; overflow-wrap: anywhere}
.offered .grid-wrap {height: auto !important; min-height: 0 !important; padding-top: 2.2rem !important}
.offered .grid-container {grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)) !important}
.offered .caption-label {max-width: 100%; white-space: normal}
.rows i {display: inline-block; width: .8em; height: .8em; border: 1px solid #888; vertical-align: middle}
"""


def build_page(asker: Asker, examples: Sequence[Example], folder: Path) -> "gr.Blocks":
    """The page for one model; uploads and drawings lie in `folder`."""
    import gradio as gr

    page: gr.Blocks = gr.Blocks(title="qwenft", analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S))
    with page:
        gr.HTML(_about(asker), elem_classes="about", padding=True)
        answers = gr.State((), time_to_live=KEPT_S)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture, text, task, button, said = _fields(gr, asker)
            with gr.Column(scale=2 * len(asker.names) + 1, min_width=300):
                threshold = _threshold(gr, asker)
                with gr.Row():
                    panels = [_panel(gr, name) for name in asker.names]
        if examples:
            _offered(gr, examples, [picture, text, task])
        of_panels = [part for panel in panels for part in panel]
        ask, again = _handlers(gr, asker, folder)
        gr.on(
            [button.click, text.submit], ask, [picture, text, task, threshold], [answers, said, *of_panels],
            preprocess=False, concurrency_limit=1, api_name="ask", show_progress_on=[panel[0] for panel in panels],
        )  # fmt: skip
        threshold.change(
            again, [answers, threshold], [said, *of_panels],
            trigger_mode="always_last", show_progress="hidden", concurrency_limit=2, api_name="again",
        )  # fmt: skip
        page.queue(max_size=WAITING, api_open=False)
    return page


def _about(asker: Asker) -> str:
    said = asker.chosen.text()
    return (
        f"<h1>qwenft</h1><p>{escaped(said[0].upper() + said[1:])}. Boxes are in pixels of your picture. A score is "
        "how sure the model is of a box, from 0 to 1.</p>"
    )


def _fields(gr: Any, asker: Asker) -> tuple[Any, ...]:
    picture = gr.Image(
        label="Picture", placeholder=f"Drop a picture here or click\nat most {MAX_PIXELS // 10**6} million px",
        type="filepath", image_mode=None, sources=["upload", "clipboard"], height=300, buttons=["fullscreen"],
    )  # fmt: skip
    text = gr.Textbox(
        label="What to find", placeholder="the dog", info="For detection: cat, dog. For a caption: nothing.",
        max_length=MAX_TEXT, lines=1, max_lines=3,
    )  # fmt: skip
    task = gr.Radio(list(TASKS), value=_first_task(asker), label="Task")
    return picture, text, task, gr.Button("Ask", variant="primary"), gr.HTML(visible=False)


def _first_task(asker: Asker) -> Task:
    """What is asked unless another task is chosen: the one that was learned."""
    learned = asker.adapted.contract.tasks
    return as_task(learned[0]) if learned else TASKS[0]


def _threshold(gr: Any, asker: Asker) -> Any:
    """It begins where `predict` would: at what `eval` chose, to the hundredth below."""
    kept = asker.adapted.contract.thresholds.get(_first_task(asker))
    chosen = math.floor(kept.score * 100) / 100 if kept else 0
    info = f"{chosen} was chosen on {kept.chosen_on}." if kept else None
    return gr.Slider(0, 1, chosen, step=0.01, label="Hide boxes with a score under", info=info)


def _offered(gr: Any, examples: Sequence[Example], fields: list[Any]) -> None:
    """Questions of the data set as a row of pictures; a click on one fills the fields."""
    rows = [(str(one.picture), one.text or one.task) for one in examples]
    gallery = gr.Gallery(
        rows, label="From the data set", allow_preview=False, interactive=False, buttons=[], object_fit="contain",
        elem_classes="offered",
    )  # fmt: skip

    def chosen(event: gr.SelectData) -> list[Any]:
        one = examples[event.index]
        return [str(one.picture), one.text, one.task]

    gallery.select(chosen, None, fields, queue=False, show_progress="hidden", api_name="example")


def _panel(gr: Any, name: str) -> tuple[Any, ...]:
    with gr.Column(min_width=280):
        picture = gr.Image(label=name[0].upper() + name[1:], interactive=False, height=420, buttons=["fullscreen"])
        words = gr.HTML("", elem_classes="words", apply_default_css=False)
        text = gr.Textbox(
            label="Raw answer", lines=2, max_lines=8, interactive=False, buttons=["copy"], elem_classes="raw"
        )
        with gr.Row():
            drawn = gr.DownloadButton("Download picture", size="sm", interactive=False, min_width=100)
            coco = gr.DownloadButton("Download COCO", size="sm", interactive=False, min_width=100)
    return picture, words, text, drawn, coco


def _handlers(gr: Any, asker: Asker, folder: Path) -> tuple[Any, Any]:
    """What happens when something is asked, and when the threshold moves: the model is asked once."""
    who = ("adapter", "base") if len(asker.names) > 1 else ("base",)

    def filled(found: Sequence[Prediction], threshold: float) -> list[Any]:
        """Values of all panels' parts; those without an answer yet are empty."""
        shown = [show(answer, threshold, folder, name) for answer, name in zip(found, who, strict=False)]
        empty = [_parts(gr, None)] * (len(who) - len(shown))
        return [part for parts in [*(_parts(gr, one) for one in shown), *empty] for part in parts]

    def ask(picture: Any, text: Any, task: Any, threshold: Any) -> Iterator[list[Any]]:
        try:
            path = Path(picture["path"]) if picture else None
            question = question_of(path, str(text or ""), str(task))
            found: tuple[Prediction, ...] = ()
            for answer in asker.answers(question):
                found = (*found, answer)
                yield [found, gr.update(visible=False), *filled(found, float(threshold or 0))]
        except QwenftError as error:
            yield [(), gr.update(value=problem(error), visible=True), *filled((), 0.0)]

    def again(found: tuple[Prediction, ...], threshold: float) -> list[Any]:
        try:
            return [gr.update(visible=False), *filled(found, threshold)]
        except DataError:
            gone = DataError("the picture is kept for an hour, which is over", hint="ask again")
            return [gr.update(value=problem(gone), visible=True), *filled((), 0.0)]

    return ask, again


def _parts(gr: Any, shown: Shown | None) -> list[Any]:
    if shown is None:
        return [None, "", "", gr.update(value=None, interactive=False), gr.update(value=None, interactive=False)]
    picture, coco = str(shown.picture), str(shown.coco) if shown.coco else None
    files = [gr.update(value=file, interactive=file is not None) for file in (picture, coco)]
    return [picture, shown.words, shown.text, *files]
