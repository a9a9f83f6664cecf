"""Settings from YAML, overrides and options: what is read, what is refused, and the way back."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenft.core.config import (
    DEFAULT_MODEL,
    Augment,
    DataSource,
    TrainConfig,
    load_config,
    make_config,
    setting_fields,
    to_yaml,
)
from qwenft.core.errors import ConfigError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_without_anything_the_defaults_stand() -> None:
    assert load_config(None) == TrainConfig()
    assert load_config(None).model == DEFAULT_MODEL


def test_options_beat_overrides_beat_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "rank: 8\nalpha: 8\nepochs: 8\n")
    config = load_config(path, ["alpha=16", "epochs=16"], epochs=32.0, seed=None)
    assert (config.rank, config.alpha, config.epochs, config.seed) == (8, 16, 32.0, 0)


@pytest.mark.parametrize("text", ["2e-4", "2E-4", "0.0002", "2.0e-04"])
def test_a_learning_rate_is_a_number_however_it_is_written(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.yaml", f"learning_rate: {text}\n")
    assert load_config(path).learning_rate == 2e-4  # PyYAML alone reads 2e-4 as text
    assert load_config(None, [f"learning_rate={text}"]).learning_rate == 2e-4


@pytest.mark.parametrize("name", ["007", "1_000", "2024-01-01", "1e3", "no", "true", "1:30", "run 7", "卷"])
def test_a_name_stays_what_was_written_though_yaml_would_read_something_else(tmp_path: Path, name: str) -> None:
    assert load_config(None, [f"name={name}"]).name == name
    assert load_config(write(tmp_path / "a.yaml", f"name: {name}\n")).name == name


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("gpus=1,3", "gpus", "1,3"),
        ("gpus=[1, 3]", "gpus", "1,3"),
        ("gpus=0", "gpus", "0"),
        ("gpus=cpu:2", "gpus", "cpu:2"),
        ("parts=language,merger", "parts", ("language", "merger")),
        ("parts=[language, vision]", "parts", ("language", "vision")),
        ("max_steps=null", "max_steps", None),
        ("max_steps=", "max_steps", None),
        ("checkpointing=true", "checkpointing", True),
        ("checkpointing=no", "checkpointing", False),
        ("data=a=b", "data", "a=b"),
        (" rank =8", "rank", 8),
        ("data=a:0.7", "data", "a:0.7"),
        ("data=[a]", "data", "a"),
        ("data=a,b", "data", (DataSource(path="a"), DataSource(path="b"))),
        ("data=a/b:0.7, c:3e-1", "data", (DataSource(path="a/b", weight=0.7), DataSource(path="c", weight=0.3))),
        ("data=[{path: 'a,b'}, c:d]", "data", (DataSource(path="a,b"), DataSource(path="c:d"))),
        ("augment.crop=0.1", "augment", Augment(crop=0.1)),
        ("augment={crop: 0.1, jpeg: 40}", "augment", Augment(crop=0.1, jpeg=40)),
        ("augment=", "augment", Augment()),
    ],
)
def test_overrides_are_read_as_meant(override: str, key: str, value: object) -> None:
    assert getattr(load_config(None, [override]), key) == value


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ({"learning_rte": 1}, "unknown setting 'learning_rte'", "'learning_rate'"),
        ({"batchsize": 1}, "unknown setting 'batchsize'", "'batch_size'"),
        ({"lr": 1}, "unknown setting 'lr'", "'learning_rate'"),
        ({"zzz": 1}, "unknown setting 'zzz'", "qwenft config"),
        ({"rank": 0}, "rank: .*greater than 0, got 0", ""),
        ({"rank": "many"}, "rank: .*integer.*got 'many'", ""),
        ({"epochs": "nan"}, "epochs: ", ""),
        ({"epochs": "inf"}, "epochs: ", ""),
        ({"learning_rate": float("nan")}, "learning_rate: ", ""),
        ({"dropout": 1}, "dropout: .*less than 1", ""),
        ({"batch_size": "true"}, "batch_size: ", ""),
        ({"schedule": "cosin"}, "schedule: .*'cosine'", ""),
        ({"parts": ""}, "parts is empty", ""),
        ({"parts": "head"}, "parts.0: ", ""),
        ({"min_pixels": 2000, "max_pixels": 1000}, "min_pixels 2000 is over max_pixels 1000", ""),
        ({"max_pixels": 783}, "max_pixels 783 is under 28 x 28", ""),
        ({"name": "../up"}, "name: .*plain folder name", ""),
        ({"name": "latest"}, "name: .*plain folder name", ""),
        ({"name": ""}, "name: .*plain folder name", ""),
        ({"data": ","}, "data: no data set is named", "qwenft config data"),
        ({"data": "a:1,b"}, "data: some data sets have a weight and others have none", "qwenft config data"),
        ({"data": "a:0,b:1"}, "^data.0.weight: .*greater than 0, got '0' .the command line.$", "qwenft config data"),
        ({"data": [{"path": "a", "wieght": 1}, "b"]}, "^unknown setting 'data.0.wieght' .the command line.$", ""),
        ({"augment": {"crop": 0.5}}, "augment.crop: .*less than 0.5", "qwenft config augment.crop"),
        ({"augment": {"corp": 0.1}}, "unknown setting 'augment.corp'", "'augment.crop'"),
        ({"augment": 3}, "augment: ", "qwenft config augment"),
    ],
    ids=lambda value: ",".join(f"{key}={item}" for key, item in value.items()) if isinstance(value, dict) else "",
)
def test_a_mistake_is_named_with_its_key(values: dict, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_config(values, origin="the command line")
    assert hint in caught.value.hint


def test_every_mistake_has_a_line_and_the_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "rank: 0\nalpah: 3\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(str(path) in line for line in lines)
    assert "'alpha'" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rank: [1", "broken YAML"),
        (b"rank: 8\n\tseed: 3", "broken YAML"),
        (b"- rank", "must hold `key: value` lines, found a list"),
        (b"rank", "must hold `key: value` lines, found a str"),
        (b"name: \xff", "cannot be read"),
        (b"rank: !!python/object:os.system {}", "broken YAML"),
    ],
    ids=["bracket", "tab", "list", "word", "latin-1", "a tag that would run code"],
)
def test_a_broken_file_is_our_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_missing_file_is_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=str(tmp_path / "none.yaml")):
        load_config(Path("none.yaml"))


def test_an_empty_file_and_a_bom_are_fine(tmp_path: Path) -> None:
    assert load_config(write(tmp_path / "a.yaml", "# nothing\n")) == TrainConfig()
    assert load_config(write(tmp_path / "b.yaml", "\ufeffrank: 8\n")).rank == 8


@pytest.mark.parametrize("text", ["rank", "=8", " =8"])
def test_an_override_needs_a_key_and_a_value(text: str) -> None:
    with pytest.raises(ConfigError, match="expected key=value"):
        load_config(None, [text])


def test_relative_paths_in_a_file_start_at_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sets" / "mine").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    path = write(tmp_path / "conf" / "a.yaml", "data: ../sets/mine\nmodel: tiny\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_config(path)
    assert Path(config.data or "").resolve() == tmp_path / "sets" / "mine"
    assert Path(config.data or "").is_absolute()
    assert config.model == "tiny"  # no such folder beside the file: a name stays a name
    assert load_config(None, ["data=../sets/mine"]).data == "../sets/mine"  # the current folder's


def test_relative_paths_of_several_data_sets_start_at_their_file_too(tmp_path: Path) -> None:
    (tmp_path / "sets" / "mine").mkdir(parents=True)
    path = write(tmp_path / "conf" / "a.yaml", "data: [{path: ../sets/mine, weight: 0.7}, {path: other, weight: 0.3}]")
    mine, other = load_config(path).data or ()
    assert (mine.path, mine.weight) == (str(tmp_path / "conf" / "../sets/mine"), 0.7)
    assert (other.path, other.weight) == ("other", 0.3)


def test_settings_of_a_group_are_added_to_those_of_the_file(tmp_path: Path) -> None:
    for text in ("augment: {crop: 0.1, blur: 1}\n", "augment.crop: 0.1\naugment.blur: 1\n"):
        config = load_config(write(tmp_path / "a.yaml", text), ["augment.blur=2", "augment.hflip=0.5"])
        assert config.augment == Augment(crop=0.1, blur=2, hflip=0.5)
        assert config.augment.is_on and not TrainConfig().augment.is_on


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=","), min_size=1, max_size=20).filter(
    lambda text: text.strip() == text and text not in ("null", "~", "Null", "NULL")
)
WEIGHTS = st.floats(0.01, 100)
CONFIGS = st.builds(
    TrainConfig,
    data=st.none()
    | TEXT
    | st.sampled_from(["a # b", "x: y", "...", "- a", "'", '"', "{a}", "007", "2e-4", "yes", "=", "a\\n"])
    | st.lists(st.builds(DataSource, path=TEXT), min_size=2).map(tuple)
    | st.lists(st.builds(DataSource, path=TEXT, weight=WEIGHTS), min_size=2).map(tuple),
    augment=st.builds(Augment, crop=st.floats(0, 0.4), jpeg=st.none() | st.integers(1, 99)),
    learning_rate=st.floats(1e-9, 1),
    epochs=st.floats(0.01, 100),
    max_steps=st.none() | st.integers(1, 10**9),
    gpus=st.sampled_from([None, "0", "1,3", "cpu", "cpu:2"]),
    parts=st.sampled_from([("language",), ("language", "merger", "vision")]),
    checkpointing=st.booleans(),
    report_to=st.sampled_from([(), ("tensorboard",), ("wandb", "swanlab")]),
)


@given(CONFIGS)
def test_a_saved_config_loads_as_the_same_one(config: TrainConfig) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        assert load_config(write(Path(folder) / "config.yaml", to_yaml(config))) == config


def test_a_saved_config_is_complete_and_explains_each_line() -> None:
    lines = to_yaml(TrainConfig()).splitlines()
    lines.remove(f"augment:  # {TrainConfig.model_fields['augment'].description}")
    assert [line.partition(":")[0].replace("  ", "augment.") for line in lines] == list(setting_fields())
    for line, field in zip(lines, setting_fields().values(), strict=True):
        assert field.description
        assert line.endswith(f"# {field.description}")


def test_a_list_that_is_given_nothing_is_empty() -> None:
    assert load_config(None, ["report_to="]).report_to == ()
    with pytest.raises(ConfigError, match="parts is empty"):
        load_config(None, ["parts="])
