# %% [markdown]
# # An adapter from start to end
#
# The whole line from Python, on the model that qwenft carries (4.8 M parameters) and on pictures that are drawn here:
# no network, no GPU, about a minute on two cores. With a data set and a model of yours it is the same code:
# `prepare_dataset("owner/name")`, and `TrainConfig` without `model="tiny"`.
#
# Made and executed by `python examples/make_notebook.py` from `examples/first_adapter.py`.

# %%
from pathlib import Path

from PIL import Image

from qwenft import TrainConfig, count_updates, evaluate_run, find, prepare_dataset, to_detections, train_adapter
from qwenft.demo.scenes import write_scenes

NUM_TRAIN, NUM_VAL = 400, 60  # pictures
ROOT = Path("first-adapter")  # data/ and runs/ are made in it

# %% [markdown]
# ## Pictures with questions
#
# Coloured outlines on a dark ground, which the tiny model has never seen. The source is a folder as anybody has one:
# pictures, and a line of JSON for each question.

# %%
source = write_scenes(ROOT / "scenes", num_train=NUM_TRAIN, num_val=NUM_VAL, seed=0)
print((source / "train.jsonl").read_text().splitlines()[0])
Image.open(source / "images" / "train-0000.png")

# %% [markdown]
# ## Prepare
#
# Which way the boxes are written is found out by refutation over the whole data set; what is not taken is counted and
# kept.

# %%
data = prepare_dataset("scenes", root=ROOT)
print(*data.manifest.notes, sep="\n")
print({split: (info.role, info.samples) for split, info in data.manifest.splits.items()})

# %% [markdown]
# In `preview/` boxes are drawn after a round trip through the frame that the model answers in.

# %%
Image.open(sorted((data.path / "preview").glob("[0-9]*"))[0])

# %% [markdown]
# ## Ask the base model
#
# About a held-out picture; boxes are in pixels of the file.

# %%
sample = max(data.samples("val"), key=lambda sample: len(sample.query))
picture = data.picture_path(sample)
(before,) = find([picture], sample.query, model="tiny", gpus="cpu", root=ROOT)
print(f"{sample.query}: {before.objects[0].box_xyxy}, in truth {sample.objects[0].bbox}")

# %% [markdown]
# ## Train
#
# The number of updates is known before. Training is a process of its own; what it says comes as events, which are
# also kept in `events.jsonl`.

# %%
config = TrainConfig(
    model="tiny",
    data="scenes",
    name="first",
    gpus="cpu",
    batch_size=8,
    accumulation=1,
    learning_rate=0.003,  # a small model takes far more than a large one
    rank=16,
    dropout=0.0,
    parts=("language", "vision"),
    workers=0,
    eval_samples=0,  # the held-out pictures choose nothing, they only judge
)
print(count_updates(data.manifest.splits["train"].samples, config.batch_size, epochs=config.epochs).formula)
events = []
run = train_adapter(config, root=ROOT, emit=events.append)
steps = [event for event in events if event["event"] == "step"]
print(f"{len(steps)} updates, loss {steps[0]['loss']:.2f} at first, {steps[-1]['loss']:.2f} at last")

# %% [markdown]
# ## Curves
#
# The run draws them; from the events they can be drawn in any other way.

# %%
Image.open(run.path / "curves.png")

# %% [markdown]
# ## Ask the adapter
#
# `save` draws the box; `to_detections` hands an answer to [supervision](https://supervision.roboflow.com).

# %%
(after,) = find([picture], sample.query, run="first", gpus="cpu", root=ROOT, save=ROOT / "found.png")
print(f"{sample.query}: {after.objects[0].box_xyxy}, in truth {sample.objects[0].bbox}")
print(to_detections(after))
Image.open(ROOT / "found.png")

# %% [markdown]
# ## Measure
#
# The base model answers the same questions; the difference comes with its 95 % interval over pictures. The report
# beside it is one file for a browser: every answer, the worst first.

# %%
found = evaluate_run("first", split="val", baseline=True, gpus="cpu", root=ROOT)
for figure in ("Acc@0.5", "mean_iou"):
    base, adapter = (found.metrics[side]["grounding"]["positives"][figure] for side in ("baseline", "scores"))
    gain = found.metrics["difference"]["grounding"][figure]
    print(f"{figure}: {base:.3f} -> {adapter:.3f}, {gain['estimate']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]")
print(found.report.relative_to(ROOT.absolute()))
