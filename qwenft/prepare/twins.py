"""For a composed negative a positive of the same form: what a question looks like must not tell its answer."""

import random
from collections.abc import Sequence
from typing import Final

from qwenft.prepare.composed import Phrase, meant
from qwenft.prepare.scene import Scene

MOST_MEANT: Final = 12
"""Boxes of a positive: a grounding answer has room for so many (512 new tokens in `predict`)."""


class Twins:
    """Composed phrases that mean something in a picture of the split, each to be had once."""

    def __init__(self, scenes: Sequence[Scene], draw: random.Random) -> None:
        self._scenes, self._draw = scenes, draw
        self._left: dict[str, dict[str, list[tuple[int, str]]]] = {}
        """form -> category -> (number of the scene, text), in a drawn order."""
        for number, scene in enumerate(scenes):
            for phrase in meant(scene, MOST_MEANT):
                of_form = self._left.setdefault(phrase.form, {})
                of_form.setdefault(phrase.label, []).append((number, phrase.text))
        for of_form in self._left.values():
            for offers in of_form.values():
                draw.shuffle(offers)

    def take(self, form: str, label: str) -> tuple[Scene, Phrase] | None:
        """One of this form, about this category where some is left; None where nothing of the form is left."""
        of_form = self._left.get(form)
        if not of_form:
            return None
        chosen = label if label in of_form else self._draw.choice(list(of_form))
        number, text = of_form[chosen].pop()
        if not of_form[chosen]:
            del of_form[chosen]
        scene = self._scenes[number]
        return scene, next(phrase for phrase in meant(scene, MOST_MEANT) if phrase.text == text)
