"""The fast training step, switched on where it gives what the plain one gives: probed once at start-up."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch

from qwenft.core.boxes import MERGE, PATCH
from qwenft.core.errors import first_line
from qwenft.model.attention import HALF, PLAIN, enable_fast_vision, set_fast_vision
from qwenft.model.branches import BRANCHES, on_device, pack, with_pictures
from qwenft.model.features import PictureFeatures
from qwenft.model.inputs import IGNORED, Encoded, Picture, collate
from qwenft.model.load import base_of
from qwenft.model.lora import set_fast_lora

COMPILED_MULTIPLE: Final = 128
"""Of the rows' lengths where layers are compiled: some versions of torch compile anew for each length after all."""
MAX_GRAPHS: Final = 48
"""So often the layers may be compiled anew before that costs more than it brings: some seconds each time."""
PROBE_TOLERANCE: Final = {False: 1e-3, True: 0.12}
"""Relative difference of loss and gradients that rounding explains: in float32, in half precision.  There it grows with
depth and width: .005 to .025 in 36 layers of 64 to 1024 numbers; what is broken is off by .2 and more."""


def set_branches(base: Any, fast: bool) -> None:
    """Let the language model of a Qwen2_5_VLForConditionalGeneration take packed rows, or be as it was."""
    name = BRANCHES if fast else PLAIN
    for config in (base.config.text_config, base.model.language_model.config):
        config._attn_implementation = name


def set_fast_step(model: Any, fast: bool) -> None:
    """Switch all fast pieces of a model, with or without LoRA, on or off."""
    base = base_of(model)
    set_fast_vision(base, fast)
    set_branches(base, fast)
    set_fast_lora(model, fast)


def enable_fast_step(model: Any) -> str:
    """Switch the fast step on if it gives what the plain one gives, on pictures of noise and questions of noise.

    Returns "" where it is on, else why it is not; the model is then left as it was.
    """
    base = base_of(model)
    if why := enable_fast_vision(base):
        return f"vision: {why}"
    try:
        difference = _probe(model, base)
    except (RuntimeError, NotImplementedError, ImportError, ValueError) as error:
        set_fast_step(model, False)
        return f"it cannot run here ({first_line(error)})"
    if not difference <= PROBE_TOLERANCE[base.dtype in HALF]:
        set_fast_step(model, False)
        return f"it differs from the plain one by {difference:.1e}"
    return ""


def _probe(model: Any, base: Any) -> float:
    """The larger relative difference: of the losses, and of gradients in the last layer that has any.

    There rounding has had the fewest layers to add up in.
    """
    image_id = base.config.image_token_id
    items = _noise(base)
    pictures = [items[0].picture, items[-1].picture]
    padded = collate(items, 0, image_id)
    packed = with_pictures(pack(items, image_id)[0], pictures, None)
    watched = [parameter for parameter in base.parameters() if parameter.requires_grad][-8:]
    found = []
    was_training = model.training
    model.eval()  # without dropout
    for fast, inputs in ((False, padded), (True, packed)):
        set_fast_step(model, fast)
        loss = base(**on_device(inputs, base.device)).loss
        gradients = torch.autograd.grad(loss, watched)
        found.append((loss.detach().float(), torch.cat([gradient.flatten().float() for gradient in gradients])))
    model.train(was_training)
    (plain_loss, plain), (loss, gradient) = found
    return float(max((loss - plain_loss).abs() / plain_loss, (gradient - plain).norm() / plain.norm()))


def _noise(base: Any) -> list[Encoded]:
    """Two questions about a picture and one about another."""
    draw = torch.Generator().manual_seed(0)
    wide = base.model.visual.patch_embed.proj.weight[0].numel()
    image_id = base.config.image_token_id
    pictures = []
    for rows, columns in ((6, 4), (4, 8)):
        pixels = torch.randn(rows * columns, wide, generator=draw)
        wh = (columns * PATCH, rows * PATCH)
        pictures.append(Picture(pixels, torch.tensor([1, rows, columns]), wh, wh))
    items = []
    for picture, length in ((pictures[0], 5), (pictures[0], 9), (pictures[1], 7)):
        text = torch.randint(1, image_id, (3 + length,), generator=draw).tolist()
        shared = [*[2, 3], *[image_id] * (len(picture.pixel_values_PD) // MERGE**2), 4]
        ids = shared + text
        items.append(Encoded(ids, [IGNORED] * (len(ids) - length) + ids[-length:], picture, "", len(shared)))
    return items


def compile_layers(model: Any, *, vision: bool, backend: str = "inductor") -> str:
    """Let torch.compile fuse each decoder layer; lengths may vary.  Compiles by a step on noise.

    vision: the blocks of the vision tower too, which is frozen and sees pictures apart from the language model.
    Returns "" where the layers are compiled, else why they are not.
    """
    import torch._dynamo
    from torch.fx.experimental import _config as symbolic_shapes

    base = base_of(model)
    layers = [*base.model.language_model.layers, *(base.model.visual.blocks if vision else ())]
    symbolic_shapes.use_duck_shape = False  # two lengths that happen to be equal in one row are not so in the next
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    # The innermost function of each class: around it transformers wraps one that all classes share, and torch keeps
    # what it compiled by function, looks through all of it at each call, and gives up after some.
    compiled = {
        kind: torch.compile(inspect.unwrap(kind.forward), dynamic=True, backend=backend)
        for kind in {type(layer) for layer in layers}
    }
    for layer in layers:
        vars(layer)["forward"] = partial(_forward, compiled[type(layer)], layer)
    items = _noise(base)
    pictures = [items[0].picture, items[-1].picture]
    packed = pack(items, base.config.image_token_id)[0]
    was_training = model.training
    model.train()
    try:
        known = PictureFeatures(base, 0)(pictures, ["one", "other"]) if vision else None
        shown = on_device(with_pictures(packed, pictures, known), base.device)
        count = torch.tensor(1, device=base.device)  # as the Trainer gives it: keywords reach the layers, by number
        base(**shown, num_items_in_batch=count).loss.backward()
    except (RuntimeError, ImportError, OSError, ValueError) as error:
        uncompile_layers(model)
        return " ".join(str(error).split())[:200] or type(error).__name__
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    return ""


def num_graphs() -> int:
    """How often anything was compiled in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def uncompile_layers(model: Any) -> None:
    """Leave the layers as they were."""
    for module in model.modules():
        if _is_compiled(module):
            del vars(module)["forward"]


def _is_compiled(module: torch.nn.Module) -> bool:
    return isinstance(call := vars(module).get("forward"), partial) and call.func is _forward


def _forward(compiled: Any, layer: Any, *arguments: Any, **more: Any) -> Any:
    """A layer's forward, recomputed in the backward pass where that is asked for (GradientCheckpointingLayer)."""
    if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled():
        return layer._gradient_checkpointing_func(partial(compiled, layer, **more), *arguments)
    return compiled(layer, *arguments, **more)


@contextmanager
def eager_layers(model: Any) -> Iterator[None]:
    """Inside the block no layer is compiled: generation asks for other shapes at each step and would compile again."""
    compiled = {module: vars(module)["forward"] for module in model.modules() if _is_compiled(module)}
    uncompile_layers(model)
    try:
        yield
    finally:
        for module, call in compiled.items():
            vars(module)["forward"] = call
