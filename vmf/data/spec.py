"""What a clip is, and how training may change it: the two option sets of the data side."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClipSpec:
    """The clip a model reads; ``ClipSpec(**dataclasses.asdict(spec))`` gives it back, JSON between.

    Args:
        frames: T, frames per clip.
        stride: Distance between two of them, in frames of the file.
        size: H = W of the clip, in pixels.
        mean: Per-channel (R, G, B) mean that is subtracted, on a scale of 0 to 1.
        std: Per-channel deviation to divide by afterwards.

    Raises:
        ValueError: A value out of range.
    """

    frames: int = 8
    stride: int = 2
    size: int = 64
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "size"):
            _require(getattr(self, name) >= 1, f"ClipSpec: {name} must be at least 1", self, name)
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
            _require(
                len(getattr(self, name)) == 3, f"ClipSpec: {name} takes three values", self, name
            )
        _require(min(self.std) > 0, "ClipSpec: std must be positive", self, "std")

    @property
    def span(self) -> int:
        """Frames of the file from the first frame of a clip to its last, both counted."""
        return (self.frames - 1) * self.stride + 1


@dataclass(frozen=True)
class AugmentOptions:
    """Training augmentation. One draw serves all frames of a clip: a clip stays a steady shot.

    Args:
        crop_scale: Smallest and largest area of the random resized crop, as a share of the frame.
        crop_ratio: Smallest and largest width / height of that crop.
        flip: Probability of a horizontal flip.
        flip_pairs: Pairs of class names that a horizontal flip turns into each other, such as
            ``("pan_left", "pan_right")``; the label follows the picture.
        color_jitter: Strength s: brightness, contrast and saturation are each multiplied by a
            factor from [1 - s, 1 + s]. 0 turns it off.
        randaugment: Magnitude of RandAugment, 1 to 10. 0 turns it off.
        randaugment_ops: How many of its operations are applied to a clip.

    Raises:
        ValueError: A value out of range.
    """

    crop_scale: tuple[float, float] = (0.25, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    flip_pairs: tuple[tuple[str, str], ...] = ()
    color_jitter: float = 0.2
    randaugment: int = 0
    randaugment_ops: int = 2

    def __post_init__(self) -> None:
        pairs = tuple(tuple(pair) for pair in self.flip_pairs)
        object.__setattr__(self, "flip_pairs", pairs)
        for name in ("crop_scale", "crop_ratio"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        low, high = self.crop_scale
        rule = "AugmentOptions: crop_scale must satisfy 0 < low <= high <= 1"
        _require(0 < low <= high <= 1, rule, self, "crop_scale")
        low, high = self.crop_ratio
        rule = "AugmentOptions: crop_ratio must satisfy 0 < low <= high"
        _require(0 < low <= high, rule, self, "crop_ratio")
        _require(0 <= self.flip <= 1, "AugmentOptions: flip is a probability", self, "flip")
        names = [name for pair in pairs for name in pair]
        rule = "AugmentOptions: flip_pairs holds pairs of class names, each name once"
        well_formed = all(len(pair) == 2 for pair in pairs) and len(set(names)) == len(names)
        _require(well_formed, rule, self, "flip_pairs")
        rule = "AugmentOptions: color_jitter must lie in [0, 1]"
        _require(0 <= self.color_jitter <= 1, rule, self, "color_jitter")
        rule = "AugmentOptions: randaugment must lie in 0 to 10"
        _require(0 <= self.randaugment <= 10, rule, self, "randaugment")
        rule = "AugmentOptions: randaugment_ops must be at least 1"
        _require(self.randaugment_ops >= 1, rule, self, "randaugment_ops")


def _require(condition: bool, rule: str, owner: object, name: str) -> None:
    if not condition:
        raise ValueError(f"{rule} (got {name}={getattr(owner, name)!r})")
