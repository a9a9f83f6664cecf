"""An answer as supervision's `Detections`: for its annotators, trackers and metrics."""

from typing import TYPE_CHECKING

from qwenft.core.predictions import Prediction

if TYPE_CHECKING:
    import supervision as sv


def to_detections(answer: Prediction) -> "sv.Detections":
    """Turn an answer into `supervision.Detections`, boxes in px of the picture as a viewer shows it.

    `class_id` counts the categories that were asked for, then other labels in the order of the answer; the labels
    stand in `data["class_name"]`.  `confidence` is None where a score is not known.

    >>> from pathlib import Path
    >>> from qwenft import to_detections
    >>> from qwenft.core.predictions import Detected, Prediction, Question
    >>> asked = Question(Path("photo.png"), "detection", categories=("cat", "dog"))
    >>> answer = Prediction(asked, "ok", (Detected((1.0, 2.0, 30.0, 40.0), "dog", 0.9),), text="", prompt="")
    >>> found = to_detections(answer)
    >>> found.xyxy.tolist(), found.class_id.tolist(), found.confidence.tolist(), found["class_name"].tolist()
    ([[1.0, 2.0, 30.0, 40.0]], [1], [0.9], ['dog'])
    """
    import numpy as np
    import supervision as sv

    names = list(dict.fromkeys([*answer.question.categories, *(item.label for item in answer.objects)]))
    scores = [item.score for item in answer.objects]
    return sv.Detections(
        xyxy=np.array([item.box_xyxy for item in answer.objects], dtype=float).reshape(-1, 4),
        confidence=None if None in scores else np.array(scores, dtype=float),
        class_id=np.array([names.index(item.label) for item in answer.objects], dtype=int),
        data={"class_name": np.array([item.label for item in answer.objects], dtype=object)},
    )
