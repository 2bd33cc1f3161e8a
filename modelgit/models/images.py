"""Images of examples as pixels, prepared as the preprocessor_config.json beside the weights says."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from modelgit.errors import MissingExtraError, UsageError
from modelgit.models.base import Batch, Example
from modelgit.models.tokens import bucketed_order
from modelgit.objects.paths import path_problem

__all__ = ["ImageSet", "ImageSource", "Preparation", "image_set", "image_source"]

# ConvNeXt's processor crops images that are smaller than this: its `crop_pct` says how much.
_CROPPED_BELOW = 384


class ImageSource(NamedTuple):
    """Where an image is: a file, or its bytes (of an image file or a .npy file); `digest` is the BLAKE3 of those."""

    where: str
    path: Path | None
    content: bytes | None
    digest: bytes

    def read(self) -> bytes:
        """The bytes of the file.  Raises UsageError when it is gone or has changed since it was first read."""
        content = self.content if self.path is None else _content(self.path, self.where)
        if content is None or blake3(content).digest() != self.digest:
            raise UsageError(f"{self.where}: the image changed while it was used")
        return content


def image_source(value: object, *, folder: Path, where: str) -> ImageSource:
    """The image that a record's field holds: a path below `folder`, nested lists of numbers, or a Parquet image.

    Raises UsageError that names `where`.
    """
    if isinstance(value, dict):  # {"bytes": ..., "path": ...}, as the `datasets` library writes images
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return ImageSource(where, None, value, blake3(value).digest())
    if isinstance(value, list):
        return _numbers(value, where)
    if not isinstance(value, str):
        raise UsageError(f"{where}: the image is {type(value).__name__}, not a path or numbers")
    # A data file travels: it may not have files read that lie elsewhere.
    problem = path_problem(value)
    if problem is not None:
        raise UsageError(
            f"{where}: the image {value!a} cannot be read: {problem}", hint="paths are relative to the data file"
        )
    path = folder / value
    return ImageSource(where, path, None, blake3(_content(path, where)).digest())


def _content(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{where}: the image {path.name} cannot be read: {error.strerror or error}",
            hint="paths of images are relative to the data file that names them",
        ) from error


def _numbers(value: list[object], where: str) -> ImageSource:
    try:
        array = np.array(value)
    except ValueError as error:
        raise UsageError(f"{where}: the image is no array of numbers: its rows differ in length") from error
    if array.dtype.kind == "i" and array.size and array.min() >= 0 and array.max() <= 255:
        array = array.astype(np.uint8)
    elif array.dtype.kind in "if":
        array = array.astype(np.float32)
    else:
        raise UsageError(f"{where}: the image is no array of numbers")
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return ImageSource(where, None, file.getvalue(), blake3(file.getvalue()).digest())


class Preparation(msgspec.Struct, frozen=True, kw_only=True):
    """The part of preprocessor_config.json that says how an image becomes numbers.

    What the file leaves out is done when the numbers for it are there (`size`, `crop_size`, `image_mean`).
    """

    do_resize: bool | None = None
    size: dict[str, int | None] | int | None = None
    resample: int = 2
    crop_pct: float | None = None
    do_center_crop: bool | None = None
    crop_size: dict[str, int | None] | int | None = None
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool | None = None
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    do_pad: bool | None = None
    do_flip_channel_order: bool | None = None

    @classmethod
    def read(cls, files: Mapping[str, bytes]) -> Preparation:
        """From `preprocessor_config.json` of `files`; without one, bytes become numbers between 0 and 1.

        Raises UsageError for a file that is damaged or asks for what is not done here.
        """
        try:
            found = msgspec.json.decode(files.get("preprocessor_config.json", b"{}"), type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"preprocessor_config.json of the model is not understood: {error}") from error
        for key in ("do_pad", "do_flip_channel_order"):
            if getattr(found, key):
                raise UsageError(
                    f"preprocessor_config.json asks for `{key}`, which is not done here",
                    hint='prepare the pixels in Python: `entry = "module:function"` under the task in mgit.toml, '
                    "with a function `encode(examples, files)`",
                )
        return found

    def pixels(self, source: ImageSource, channels: int) -> NDArray[np.float32]:
        """Float32 `[channels, height, width]`.  Floats of an array are taken as they are.

        Raises UsageError that names the record, MissingExtraError for image files without Pillow.
        """
        decoded = _decoded(source, channels)
        if decoded.dtype != np.uint8:
            return np.ascontiguousarray(decoded, dtype=np.float32)
        image = decoded.astype(np.uint8, copy=False)
        if self.size is not None and self.do_resize is not False:
            image = self._resized(image, source.where)
        if self.crop_size is not None and self.do_center_crop is not False:
            image = _cropped(image, *_height_width(self.crop_size, source.where))
        values = image.transpose(2, 0, 1).astype(np.float32)
        if self.do_rescale:
            values *= np.float32(self.rescale_factor)
        if self.image_mean and self.image_std and self.do_normalize is not False:
            mean, std = (np.array(v, np.float32)[:, None, None] for v in (self.image_mean, self.image_std))
            values = (values - mean) / std
        return np.ascontiguousarray(values, dtype=np.float32)

    def _resized(self, image: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
        shortest = self.size.get("shortest_edge") if isinstance(self.size, dict) else None
        height, width = image.shape[:2]
        if not shortest:
            return _resampled(image, *_height_width(self.size, where), self.resample)
        if self.crop_pct is None:
            return _resampled(image, *_scaled(height, width, shortest), self.resample)
        if shortest >= _CROPPED_BELOW:
            return _resampled(image, shortest, shortest, self.resample)
        larger = _resampled(image, *_scaled(height, width, int(shortest / self.crop_pct)), self.resample)
        return _cropped(larger, shortest, shortest)


def _decoded(source: ImageSource, channels: int) -> NDArray[np.generic]:
    """Bytes `[height, width, channels]`, or floats `[channels, height, width]`."""
    content = source.read()
    if content.startswith(b"\x93NUMPY"):
        try:
            array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        except ValueError as error:
            raise UsageError(f"{source.where}: the image is not a .npy file that can be read: {error}") from error
        kind = "bytes" if array.dtype == np.uint8 else "floats"
        axis = -1 if kind == "bytes" else 0
        array = np.expand_dims(array, axis) if array.ndim == 2 else array
        if array.dtype.kind not in "uf" or (kind == "floats" and array.dtype.kind == "u"):
            raise UsageError(f"{source.where}: the image holds {array.dtype}, not bytes or floats")
        if array.ndim != 3 or array.shape[axis] != channels:
            order = "[height, width, channels]" if kind == "bytes" else "[channels, height, width]"
            raise UsageError(
                f"{source.where}: the image has shape {list(array.shape)}; {kind} of {channels} channels are {order}"
            )
        return array
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError(
            f"{source.where}: reading an image file needs the `pillow` package",
            hint="`pip install 'modelgit[images]'`, or .npy files",
        ) from error
    try:
        with Image.open(io.BytesIO(content)) as image:
            flat = np.asarray(image.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{source.where}: the image cannot be read: {error}") from error
    return flat[:, :, None] if flat.ndim == 2 else flat


def _resampled(image: NDArray[np.uint8], height: int, width: int, method: int) -> NDArray[np.uint8]:
    if image.shape[:2] == (height, width):
        return image
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError(
            "preprocessor_config.json asks for images of another size, which needs the `pillow` package",
            hint="`pip install 'modelgit[images]'`",
        ) from error
    channels = image.shape[2]
    pillow = Image.fromarray(image[:, :, 0] if channels == 1 else image)
    resized = np.asarray(pillow.resize((width, height), Image.Resampling(method)), dtype=np.uint8)
    return resized[:, :, None] if channels == 1 else resized


def _scaled(height: int, width: int, shortest: int) -> tuple[int, int]:
    """The size whose shorter edge is `shortest`, with the same proportions."""
    if height <= width:
        return shortest, int(shortest * width / height)
    return int(shortest * height / width), shortest


def _height_width(size: dict[str, int | None] | int | None, where: str) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = (size or {}).get("height"), (size or {}).get("width")
    if not height or not width:
        raise UsageError(f"{where}: preprocessor_config.json gives a size that is not understood: {size}")
    return height, width


def _cropped(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The middle of the image, with black around it where it is smaller."""
    missing = max(0, height - image.shape[0]), max(0, width - image.shape[1])
    if any(missing):
        around = [(-(-extra // 2), extra // 2) for extra in missing]
        image = np.pad(image, (*around, (0, 0)))
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


@dataclass
class ImageSet:
    """Images of each example, read when a batch is made: no more than one batch of pixels is held.

    `name` is the argument of the module.
    """

    examples: tuple[Example, ...]
    fingerprint: str
    preparation: Preparation
    channels: int
    name: str = "pixel_values"

    def __len__(self) -> int:
        return len(self.examples)

    def batches(self, size: int, *, seed: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        """Pixels, float32 `[B, channels, height, width]`.  Raises UsageError for images of different sizes."""
        import torch  # whoever only reads examples, to know what a suite asks, does not wait for it

        for positions in bucketed_order((1,) * len(self.examples[:limit]), size, seed=seed):
            chosen = [self.examples[position] for position in positions]
            images = [self.preparation.pixels(_source(example), self.channels) for example in chosen]
            for example, image in zip(chosen, images, strict=True):
                if image.shape != images[0].shape:
                    raise UsageError(
                        f"images `{chosen[0].id}` and `{example.id}` differ in size: {list(images[0].shape)} and "
                        f"{list(image.shape)}",
                        hint='write the size into preprocessor_config.json: {"size": {"height": 224, "width": 224}}',
                    )
            labels = torch.tensor([example.label for example in chosen], dtype=torch.int64)
            yield Batch({self.name: torch.from_numpy(np.stack(images))}, labels, tuple(positions))

    def select(self, positions: Sequence[int]) -> ImageSet:
        """The examples at `positions`."""
        return replace(self, examples=tuple(self.examples[position] for position in positions))


class _Channels(msgspec.Struct):
    num_channels: int = 3


def image_set(examples: tuple[Example, ...], fingerprint: str, files: Mapping[str, bytes]) -> ImageSet:
    """The images of `examples`, prepared as the files of the model say; `num_channels` of config.json, or 3."""
    try:
        channels = msgspec.json.decode(files.get("config.json", b"{}"), type=_Channels).num_channels
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        channels = _Channels().num_channels
    return ImageSet(examples, fingerprint, Preparation.read(files), channels)


def _source(example: Example) -> ImageSource:
    source = example.fields.get("image")
    if not isinstance(source, ImageSource):
        raise UsageError(f"example `{example.id}` has no image", hint='write `kind = "image-classification"`')
    return source
