"""The fine-tunes as files of other dtypes, as people publish them."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

__all__ = ["DTYPES", "Arrays", "Variants", "cast", "read_tensors", "words_of"]

Arrays = dict[str, NDArray[np.generic]]
DTYPES = ("bf16", "fp16", "fp32", "int8", "fp8", "int4", "bf16 in fp32")
_NUMPY: dict[str, type[np.generic] | str] = {
    "BF16": ml_dtypes.bfloat16, "F16": "<f2", "F32": "<f4", "I64": "<i8", "I8": "i1", "U8": "u1",
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
}  # fmt: skip
_GROUP = 64
_LORA_SCALE = np.float32(2.0)


class Variants:
    """Paths of `name` in `dtype`, written when first asked for."""

    def __init__(self, originals: dict[str, Path], folder: Path) -> None:
        self._originals = originals
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str, dtype: str) -> Path:
        """The file; `lora_on_bf16` is the adapter merged into the base in bfloat16, as PEFT does on such a model."""
        path = self._folder / f"{name}-{dtype.replace(' ', '-')}.safetensors"
        if not path.exists():
            if name == "lora_on_bf16":
                arrays = _merged_in_bf16(
                    read_tensors(self._originals["base"]), read_tensors(self._originals["lora_adapter"])
                )
            else:
                arrays = cast(read_tensors(self._originals[name]), dtype)
            save_file(arrays, path, metadata={"format": "pt"})
        return path

    def arrays(self, name: str, dtype: str) -> Arrays:
        """The tensors of that file."""
        return read_tensors(self.path(name, dtype))


def read_tensors(path: Path) -> Arrays:
    """A safetensors file; unlike the library's own reader for numpy it knows 8-bit floats."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found: Arrays = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            low, high = entry["data_offsets"]
            flat = np.frombuffer(data[start + low : start + high], _NUMPY[entry["dtype"]])
            found[name] = flat.reshape(entry["shape"])
    return found


def words_of(array: NDArray[np.generic]) -> NDArray[np.unsignedinteger]:
    """The bits of a tensor as a flat array of unsigned words."""
    return np.ascontiguousarray(array).reshape(-1).view(f"<u{array.dtype.itemsize}")


def cast(arrays: Arrays, dtype: str) -> Arrays:
    """Every float32 tensor in `dtype`; int8, fp8 and int4 quantise matrices only and add their scales."""
    simple = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}
    if dtype in simple:
        return {name: array.astype(simple[dtype]) for name, array in arrays.items()}
    if dtype == "bf16 in fp32":
        return {name: array.astype(ml_dtypes.bfloat16).astype(np.float32) for name, array in arrays.items()}
    made: Arrays = {}
    for name, array in arrays.items():
        if array.ndim != 2 or array.shape[1] % _GROUP:
            made[name] = array
            continue
        grouped = array.reshape(array.shape[0], -1, _GROUP if dtype == "int4" else array.shape[1])
        largest = {"int8": 127.0, "fp8": 448.0, "int4": 7.0}[dtype]
        scale = np.maximum(np.abs(grouped).max(-1, keepdims=True), 1e-12) / np.float32(largest)
        scaled = (grouped / scale).reshape(array.shape)
        made[f"{name}.scale"] = scale[..., 0].astype(np.float32)
        if dtype == "fp8":
            made[name] = scaled.astype(ml_dtypes.float8_e4m3fn)
        elif dtype == "int8":
            made[name] = np.rint(scaled).astype(np.int8)
        else:
            nibbles = (np.rint(scaled).astype(np.int8) + 8).astype(np.uint8)
            made[name] = nibbles[:, ::2] | (nibbles[:, 1::2] << 4)
    return made


def _merged_in_bf16(base: Arrays, adapter: Arrays) -> Arrays:
    made = cast(base, "bf16")
    for key in [key for key in adapter if key.endswith(".A")]:
        name = key.removesuffix(".A")
        change = ((adapter[f"{name}.B"] @ adapter[key]) * _LORA_SCALE).astype(ml_dtypes.bfloat16)
        weight = made[f"{name}.weight"]
        made[f"{name}.weight"] = (weight.astype(np.float32) + change.astype(np.float32)).astype(ml_dtypes.bfloat16)
    return made
