"""Fine-tune Qwen2.5-VL to find things in pictures: from a data set to a measured adapter.

What can be called from Python is listed in `dir(qwenft)`; each has an example in its `help`, and docs/python.md shows
them in a row.  Whatever the caller can mend is raised as `QwenftError`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenft.core.config import TrainConfig as TrainConfig
    from qwenft.core.config import load_config as load_config
    from qwenft.core.errors import QwenftError as QwenftError
    from qwenft.core.runs import open_run as open_run
    from qwenft.core.samples import open_dataset as open_dataset
    from qwenft.core.steps import count_updates as count_updates
    from qwenft.demo.demo import run_demo as run_demo
    from qwenft.doctor.diagnose import diagnose as diagnose
    from qwenft.evaluate.run import evaluate_run as evaluate_run
    from qwenft.export.run import export_run as export_run
    from qwenft.predict.detections import to_detections as to_detections
    from qwenft.predict.find import find as find
    from qwenft.prepare.build import prepare_dataset as prepare_dataset
    from qwenft.train.launch import resume_training as resume_training
    from qwenft.train.launch import train_adapter as train_adapter

__version__ = "0.1.0"

# Public name -> the module that holds it. Loaded on first use: `import qwenft` must cost nothing.
_PUBLIC = {
    "prepare_dataset": "qwenft.prepare.build",
    "open_dataset": "qwenft.core.samples",
    "TrainConfig": "qwenft.core.config",
    "load_config": "qwenft.core.config",
    "count_updates": "qwenft.core.steps",
    "train_adapter": "qwenft.train.launch",
    "resume_training": "qwenft.train.launch",
    "open_run": "qwenft.core.runs",
    "find": "qwenft.predict.find",
    "to_detections": "qwenft.predict.detections",
    "evaluate_run": "qwenft.evaluate.run",
    "export_run": "qwenft.export.run",
    "diagnose": "qwenft.doctor.diagnose",
    "run_demo": "qwenft.demo.demo",
    "QwenftError": "qwenft.core.errors",
}
__all__ = [  # noqa: PLE0604 - the names of _PUBLIC are strings
    "__version__",
    *_PUBLIC,
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'qwenft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
