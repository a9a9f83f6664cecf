"""What the frozen vision tower makes of a picture: computed once for all its questions, and kept for later epochs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from transformers import vision_utils

from qwenft.model.inputs import Picture

MAX_PATCHES: Final = 32768
"""Of the pictures that go through the tower at a time on a GPU: 20 of 640x480 px."""


@dataclass
class PictureFeatures:
    """The merged patches of pictures, (tokens, hidden size) each, from a vision tower that is not trained."""

    base: Any
    """A Qwen2_5_VLForConditionalGeneration."""
    budget: int
    """Bytes of main memory for features that are kept; 0 keeps none."""
    known: set[str] = field(default_factory=set)
    """Keys of the pictures whose features are kept; handed to the loader, which then leaves their pixels unread."""
    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Picture], keys: Sequence[str]) -> list[torch.Tensor]:
        """Features of each picture, on the model's device.  keys: a name for each, equal for equal pictures."""
        found = {key: self.kept[key].to(self.base.device, non_blocking=True) for key in keys if key in self.kept}
        new = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in found}
        # On the CPU one by one: what is computed must not depend on the neighbours, or a resumed run would differ.
        most = MAX_PATCHES if self.base.device.type == "cuda" else 1
        for group in _groups(list(new), new, most):
            made = self._tower([new[key] for key in group])
            for key, features in zip(group, made, strict=True):
                found[key] = features
                self._keep(key, features)
        return [found[key] for key in keys]

    def _tower(self, pictures: list[Picture]) -> Sequence[torch.Tensor]:
        device = self.base.device
        patches = torch.cat([picture.pixel_values_PD.to(device, non_blocking=True) for picture in pictures])
        grid = torch.stack([picture.grid_thw for picture in pictures])
        geometry = vision_geometry(self.base.config.vision_config, grid, device)
        made = self.base.model.get_image_features(patches, grid, return_dict=True, **geometry)
        features: Sequence[torch.Tensor] = made.pooler_output
        return features

    def _keep(self, key: str, features: torch.Tensor) -> None:
        size = features.numel() * features.element_size()
        if size <= self.budget:
            self.budget -= size
            self.kept[key] = features.to("cpu", copy=True)
            self.known.add(key)


def vision_geometry(config: Any, grid: torch.Tensor, device: torch.device) -> dict[str, Any]:
    """What the tower needs to know of pictures beside their patches, found on the CPU: on a GPU it would wait for it.

    grid: (pictures, 3) on the CPU.  The keywords are those that transformers >= 5.24 takes ready-made (vision_utils).
    """
    borders = vision_utils.get_vision_cu_seqlens(grid)
    window_index, windows = vision_utils.get_vision_window_index(
        grid, config.spatial_merge_size, config.window_size, config.patch_size
    )
    found = {
        "position_ids": vision_utils.get_vision_position_ids(grid, config.spatial_merge_size),
        "cu_seqlens": borders,
        "window_index": window_index,
        "cu_window_seqlens": windows,
    }
    longest = {"max_seqlen": int(borders.diff().max()), "max_window_seqlen": int(windows.diff().max())}
    return {key: value.to(device, non_blocking=True) for key, value in found.items()} | longest


def _groups(keys: list[str], pictures: dict[str, Picture], most: int) -> list[list[str]]:
    """Divide pictures so that no group has more than `most` patches, but at least one picture."""
    groups: list[list[str]] = []
    room = 0
    for key in keys:
        patches = len(pictures[key].pixel_values_PD)
        if not groups or patches > room:
            groups.append([])
            room = most
        groups[-1].append(key)
        room -= patches
    return groups
