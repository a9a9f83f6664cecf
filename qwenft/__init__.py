"""Fine-tune Qwen2.5-VL to find things in pictures: from a data set to a measured adapter."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenft.core.steps import count_updates as count_updates
    from qwenft.demo.demo import run_demo as run_demo
    from qwenft.doctor.diagnose import diagnose as diagnose
    from qwenft.evaluate.run import evaluate_run as evaluate_run
    from qwenft.export.run import export_run as export_run
    from qwenft.predict.find import find as find
    from qwenft.prepare.build import prepare_dataset as prepare_dataset
    from qwenft.train.launch import resume_training as resume_training
    from qwenft.train.launch import train_adapter as train_adapter

__version__ = "0.1.0"

# Public name -> the module that holds it. Loaded on first use: `import qwenft` must cost nothing.
_PUBLIC = {
    "prepare_dataset": "qwenft.prepare.build",
    "train_adapter": "qwenft.train.launch",
    "resume_training": "qwenft.train.launch",
    "find": "qwenft.predict.find",
    "evaluate_run": "qwenft.evaluate.run",
    "export_run": "qwenft.export.run",
    "diagnose": "qwenft.doctor.diagnose",
    "count_updates": "qwenft.core.steps",
    "run_demo": "qwenft.demo.demo",
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
