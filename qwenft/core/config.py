"""The settings of a run: one documented pydantic model, filled from YAML and key=value overrides."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from qwenft.core.boxes import FACTOR
from qwenft.core.errors import ConfigError, nearest

DEFAULT_MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"
TINY = "tiny"
"""Name of the embedded model."""
PART_NAMES = ("language", "merger", "vision")
SHORT: Final = {"lr": "learning_rate", "bs": "batch_size", "accum": "accumulation", "r": "rank"}
"""What others call a setting."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class DataSource(_Settings):
    """One of several prepared data sets that are learned from together."""

    path: str = Field(min_length=1)
    """A folder, or a name under data/."""
    weight: PositiveFloat | None = None
    """Its share of an epoch's samples, in relation to the others'.  None in all of them: each sample once."""


class Augment(_Settings):
    """How the pictures that are learned from are changed, anew in each epoch; boxes follow (docs/training.md)."""

    scale: float = Field(default=0.0, ge=0, lt=1)
    """A picture is shown smaller or larger by up to this share of its sides."""
    crop: float = Field(default=0.0, ge=0, lt=0.5)
    """Up to this share is cut off at each edge; no box is cut, nor a picture whose text says where a thing is."""
    hflip: float = Field(default=0.0, ge=0, le=1)
    """Share of the pictures that are mirrored; none whose text names left or right."""
    colour: float = Field(default=0.0, ge=0, lt=1)
    """Brightness, contrast and saturation change by up to this share; hues stay, since texts name colours."""
    blur: float = Field(default=0.0, ge=0, le=20)
    """Gaussian blur of up to this sigma, in px of the model's input."""
    jpeg: int | None = Field(default=None, ge=1, le=99)
    """Lowest quality of a JPEG that the model's input is written to and read from again. Unset: it is not."""

    @property
    def is_on(self) -> bool:
        """Whether anything is changed."""
        return self != Augment()


class TrainConfig(_Settings):
    """Everything a training run depends on.  README's table and the saved config.yaml are printed from here.

    >>> from qwenft import TrainConfig
    >>> TrainConfig(model="tiny", rank=16, epochs=2).epochs
    2.0
    """

    data: str | tuple[DataSource, ...] | None = None
    """Prepared data set: a folder, or its name under data/. Several: `a,b`, or `a:0.7,b:0.3`. Unset: the only one."""
    model: str = DEFAULT_MODEL
    """Hub id or folder of a Qwen2.5-VL model; `tiny` is the embedded one."""
    name: str | None = None
    """The run's name under runs/. Unset: the data set's name and the time."""
    seed: int = Field(default=0, ge=0)
    """Seeds the data order, the adapter's start and dropout."""
    epochs: PositiveFloat = 1.0
    """Passes over the training split; may be a fraction."""
    max_steps: PositiveInt | None = None
    """Exact number of optimizer updates; overrides epochs."""
    batch_size: PositiveInt = 2
    """Samples in one micro-batch on each device (`--bs` of `steps`); fast=true cuts an update by memory instead."""
    accumulation: PositiveInt = 8
    """Micro-batches in one optimizer update (`--accum` of `steps`). 1x8, 2x4 and 8x1 train the same."""
    learning_rate: PositiveFloat = 1e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of the updates in which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""
    method: Literal["lora", "full"] = "lora"
    """lora: an adapter beside frozen weights. full: the weights of `parts` themselves; rank, alpha, dropout unused."""
    rank: PositiveInt = 64
    """Inner size r of the two LoRA matrices. Higher fits more and needs more memory."""
    alpha: PositiveInt = 16
    """LoRA's strength: its output is multiplied by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout before the LoRA matrices."""
    parts: tuple[Literal["language", "merger", "vision"], ...] = ("language",)
    """Which parts are trained: language (LoRA: q, k, v, o, gate, up, down), merger, vision (qkv, proj, …)."""
    quantize: Literal["4bit"] | None = None
    """QLoRA: the frozen language model in 4 bits (NF4); vision stays whole. Needs bitsandbytes and engine=ddp."""
    min_pixels: PositiveInt | None = None
    """Smaller pictures are enlarged to this many input pixels. Unset: the model's own."""
    max_pixels: PositiveInt | None = None
    """Larger pictures are shrunk to this many input pixels; 784 are one token. Unset: the model's, at most 1003520."""
    workers: int = Field(default=2, ge=0)
    """Processes that decode pictures; 0 decodes in the training process."""
    gpus: str | None = None
    """As nvidia-smi numbers them: `0`, `1,3`, `all`, or `cpu`, `cpu:2`. Unset: the first GPU, or the CPU."""
    engine: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    """How processes share: ddp, whole model in each; fsdp, weights divided (FSDP2); deepspeed, by zero_stage."""
    zero_stage: int = Field(default=2, ge=2, le=3)
    """Of engine=deepspeed: 2 divides gradients and optimizer, 3 the weights too."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Number format of the frozen weights. auto: bfloat16 on a GPU, float32 on the CPU."""
    fast: bool = True
    """Each picture read once for its questions, rows packed, kernels fused: the same sums, probed. false: plain."""
    max_tokens: PositiveInt | None = None
    """With fast=true, tokens that go through the model at a time; an update is cut there. Unset: what fits."""
    compile: bool = False
    """Let torch.compile fuse the layers on a GPU: half a minute at first. Measured by the step, not in whole runs."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: a third of the memory, slower (benchmarks/README.md)."""
    save_every: PositiveInt | None = None
    """Updates between checkpoints. Unset: one each epoch."""
    keep_last: PositiveInt = 2
    """How many checkpoints stay."""
    keep_best: bool = False
    """The checkpoint of the best evaluation stays too; `adapter/` holds the best adapter in any case."""
    eval_every: PositiveInt | None = None
    """Updates between evaluations on the held-out split. Unset: one each epoch. Step 0 is always measured."""
    eval_samples: int = Field(default=200, ge=0)
    """At most so many held-out samples in an evaluation during training; 0 turns it off."""
    early_stopping: PositiveInt | None = None
    """Stop after this many evaluations in a row that brought nothing better. Unset: train to the end."""
    auto_micro_batch: bool = False
    """After CUDA ran out of memory go on with half as much at a time and the same updates, said aloud."""
    report_to: tuple[Literal["tensorboard", "wandb", "swanlab"], ...] = ()
    """Dashboards to log to, through transformers; each needs its own package."""

    @field_validator("parts", "report_to", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        if value is None:  # `report_to=`
            return ()
        if isinstance(value, str):
            return tuple(word.strip() for word in value.split(",") if word.strip())
        return value

    augment: Augment = Augment()
    """How pictures are changed, anew in each epoch. Off by default."""

    @field_validator("augment", mode="before")
    @classmethod
    def _nothing_changed(cls, value: Any) -> Any:
        return Augment() if value is None else value

    @field_validator("data", mode="before")
    @classmethod
    def _each_source(cls, value: Any) -> Any:
        if isinstance(value, str) and "," in value:
            value = [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, (list, tuple)):
            return tuple(_source(item) for item in value)
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("data")
    @classmethod
    def _one_or_several(cls, value: str | tuple[DataSource, ...] | None) -> str | tuple[DataSource, ...] | None:
        if not isinstance(value, tuple):
            return value
        if not value:
            raise ValueError("no data set is named")
        weighted = [source.path for source in value if source.weight is not None]
        if weighted and len(weighted) < len(value):
            raise ValueError("some data sets have a weight and others have none")
        return value if len(value) > 1 else value[0].path

    @field_validator("gpus", "name", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        if isinstance(value, list):
            return ",".join(str(item) for item in value)
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and (value in ("", ".", "..", "latest") or set(value) & set("/\\\0") or value[0] in ".-"):
            raise ValueError("a run's name is a plain folder name, and not `latest`")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if not self.parts:
            raise ValueError("parts is empty: nothing would be trained")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is over max_pixels {self.max_pixels}")
        if self.max_pixels and self.max_pixels < FACTOR**2:
            raise ValueError(
                f"max_pixels {self.max_pixels} is under {FACTOR} x {FACTOR}, the pixels of one image token"
            )
        if self.compile and (not self.fast or self.engine != "ddp" or self.quantize):
            raise ValueError("compile=true goes with fast=true, engine=ddp and whole weights")
        if self.quantize and self.method == "full":
            raise ValueError("quantize=4bit goes with method=lora: weights of 4 bits cannot be trained")
        if self.quantize and self.engine != "ddp":
            raise ValueError(f"quantize=4bit goes with engine=ddp: {self.engine} cannot divide weights of 4 bits")
        return self


_WEIGHTED: Final = re.compile(r"(.+):([0-9.]+(?:[eE][-+]?[0-9]+)?)")


def _source(item: Any) -> Any:
    """A data set of a list: its path, `path:weight`, or a mapping of both."""
    if not isinstance(item, str):
        return item
    weighted = _WEIGHTED.fullmatch(item)
    return {"path": weighted[1], "weight": weighted[2]} if weighted else {"path": item}


GROUPS: Final[Mapping[str, type[BaseModel]]] = {"augment": Augment}
"""Settings that have settings of their own, written with a dot: `augment.crop`."""


def setting_fields() -> dict[str, FieldInfo]:
    """Every setting by the name it is typed under, in order; those of a group stand in its place."""
    found: dict[str, FieldInfo] = {}
    for name, field in TrainConfig.model_fields.items():
        own = GROUPS[name].model_fields if name in GROUPS else {}
        found |= {f"{name}.{key}": inner for key, inner in own.items()} or {name: field}
    return found


def setting_schema(name: str) -> dict[str, Any]:
    """The JSON schema of a setting, by its name of `setting_fields`."""
    group, _, key = name.rpartition(".")
    model = GROUPS[group] if group else TrainConfig
    found: dict[str, Any] = model.model_json_schema()["properties"][key]
    return found


class _Loader(yaml.SafeLoader):
    """YAML in which all but `null` is text: pydantic reads the numbers, so `2e-4` is one and a name may be `007`."""


_Loader.yaml_implicit_resolvers = {
    first: kept
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [rule for rule in rules if rule[0] == "tag:yaml.org,2002:null"])
}


def _parse(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


PATH_KEYS = ("data", "model")
"""Keys whose relative paths start at the YAML file they stand in."""


def load_config(path: Path | None, overrides: Iterable[str] = (), **options: object) -> TrainConfig:
    """Merge a YAML file, `key=value` overrides and command-line options (None: not given); later ones win.

    Raises ConfigError that names file, key and the nearest known key.

    >>> from qwenft import load_config
    >>> config = load_config(None, ["learning_rate=2e-4"], epochs=2)
    >>> config.learning_rate, config.epochs
    (0.0002, 2.0)
    """
    values: dict[str, Any] = _from_yaml(path) if path else {}
    for key, value in map(_split_override, overrides):
        _put(values, key, value)
    values |= {key: value for key, value in options.items() if value is not None}
    return make_config(values, origin=str(path) if path else "the command line")


def make_config(values: Mapping[str, Any], origin: str) -> TrainConfig:
    """Validate settings.  Raises ConfigError with one line a mistake."""
    try:
        return TrainConfig.model_validate(dict(values))
    except ValidationError as error:
        lines, hint, fields = [], "qwenft config", setting_fields()
        for item in error.errors():
            if item["loc"][:2] == ("data", "str") and not isinstance(item["input"], bool):
                continue  # a list of data sets: what is wrong with it is said by its own lines
            key = ".".join(str(part) for part in item["loc"] if not str(part).startswith(("tuple[", "str")))
            if item["type"] == "extra_forbidden":
                lines.append(f"unknown setting {key!r} ({origin})")
                near = difflib.get_close_matches(SHORT.get(key, key), fields, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "qwenft config"
            else:
                message = item["msg"].removeprefix("Value error, ").replace("Input should", "should")
                lines.append(f"{key}: {message}, got {item['input']!r} ({origin})" if key else message)
                about = key if key in fields else item["loc"][0] if key else re.split("[= ]", message)[0]
                hint = f"qwenft config {about}"
        raise ConfigError("\n".join(lines), hint=hint) from error


def _from_yaml(path: Path) -> dict[str, Any]:
    try:
        value = _parse(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path.absolute()} does not exist", hint=f"qwenft config > {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.absolute()} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{path.absolute()} is broken YAML: {error}".replace('"<unicode string>", ', ""), hint="qwenft config"
        ) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path.absolute()} must hold `key: value` lines, found a {type(value).__name__}", hint="qwenft config"
        )
    found: dict[str, Any] = {}
    for key, item in value.items():
        _put(found, str(key), _from_file(item, path.parent) if key in PATH_KEYS else item)
    return found


def _from_file(value: Any, folder: Path) -> Any:
    """A path, or several, as they are meant in a file of that folder."""
    if isinstance(value, list):
        return [_from_file(item, folder) for item in value]
    if isinstance(value, dict):
        return {key: _from_file(item, folder) if key == "path" else item for key, item in value.items()}
    return str((folder / value).absolute()) if isinstance(value, str) and (folder / value).exists() else value


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a value, also one of a group (`augment.crop`), whose others stay."""
    group, dot, name = key.partition(".")
    if dot and group in GROUPS and isinstance(values.get(group) or {}, dict):
        values[group] = {**(values.get(group) or {}), name: value}
    else:
        values[key] = value


def _split_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"expected key=value, got {text!r}", hint=nearest(text, setting_fields()))
    try:
        return key.strip(), _parse(value)
    except yaml.YAMLError:
        return key.strip(), value


def to_yaml(config: TrainConfig) -> str:
    """The whole config with each field's explanation beside it: complete and rerunnable."""
    return "".join(f"{line}\n" for line in _yaml_lines(config, ""))


def _yaml_lines(settings: BaseModel, indent: str) -> Iterable[str]:
    for key, field in type(settings).model_fields.items():
        value = getattr(settings, key)
        if key in GROUPS:
            yield f"{indent}{key}:  # {field.description}"
            yield from _yaml_lines(value, f"{indent}  ")
            continue
        plain = settings.model_dump(mode="json", exclude_none=isinstance(value, tuple))[key]
        text = yaml.safe_dump(plain, default_flow_style=True, width=1000).strip().removesuffix("...").strip()
        yield f"{indent}{key}: {text}  # {field.description}"
