"""Conversions agree with torch and ml_dtypes, and round once."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from modelgit.errors import UsageError
from modelgit.numerics.floats import from_float64, has_float_values, to_float32, to_float64
from modelgit.objects import DTYPES

TORCH = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
LARGEST = {
    "F8_E4M3": 448.0,
    "F8_E5M2": 57344.0,
    "F8_E4M3FNUZ": 240.0,
    "F8_E5M2FNUZ": 57344.0,
    "F16": 65504.0,
    "BF16": 3.4e38,
}
SIGNED = {1: np.uint8, 2: np.int16}


def every_code(name: str) -> np.ndarray:
    size = DTYPES[name].word_bytes
    return np.arange(1 << 8 * size, dtype=f"<u{size}")


def widened(values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)


def awkward_floats() -> np.ndarray:
    rng = np.random.default_rng(3)
    random_bits = rng.integers(0, 1 << 32, 100_000, dtype=np.uint32).view(np.float32)
    scaled = (rng.normal(size=100_000) * np.exp2(rng.integers(-26, 18, 100_000))).astype(np.float32)
    upper_halves = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):
        return np.concatenate([random_bits, scaled, upper_halves, np.nextafter(upper_halves, np.float32(0))])


@pytest.mark.parametrize("name", TORCH)
def test_reading_agrees_with_torch(name):
    codes = every_code(name)
    expected = torch.from_numpy(codes.view(SIGNED[codes.itemsize])).view(TORCH[name]).float().numpy()
    for values in (to_float32(codes.data, name), to_float64(codes.data, name)):
        assert np.array_equal(values, expected, equal_nan=True)
        number = ~np.isnan(values)
        assert np.array_equal(np.signbit(values[number]), np.signbit(expected[number]))


@pytest.mark.parametrize("name", TORCH)
def test_writing_what_was_read_changes_nothing(name):
    codes = every_code(name)
    values = to_float32(codes.data, name)
    number = ~np.isnan(values)
    back = from_float64(widened(values), name)
    assert np.array_equal(back[number], codes[number])
    assert np.all(np.isnan(to_float32(back[~number].data, name)))


@pytest.mark.parametrize("name", TORCH)
def test_rounding_agrees_with_torch(name):
    values = awkward_floats()
    # What overflow gives has changed between releases of torch; it is tested below.
    values = values[np.isnan(values) | (np.abs(values) <= LARGEST[name])]
    codes = from_float64(widened(values), name)
    expected = torch.from_numpy(values).to(TORCH[name]).view(torch.uint8 if codes.itemsize == 1 else torch.int16)
    same = codes == expected.numpy().view(codes.dtype)
    nan = np.isnan(values)
    assert np.all(same[~nan])
    assert np.all(np.isnan(to_float32(codes[nan].data, name)))


@pytest.mark.parametrize(
    ("name", "border", "below", "beyond"),
    [
        ("F8_E4M3", 464.0, 448.0, 448.0),
        ("F8_E5M2", 61440.0, 57344.0, np.inf),
        ("F8_E4M3FNUZ", 248.0, 240.0, np.nan),
        ("F8_E5M2FNUZ", 61440.0, 57344.0, np.nan),
        ("F16", 65520.0, 65504.0, np.inf),
    ],
)
def test_overflow(name, border, below, beyond):
    cases = np.array([np.nextafter(border, 0), np.nextafter(border, 1e9), 1e30, np.inf])
    for sign in (1, -1):
        values = to_float64(from_float64(sign * cases, name).data, name)
        assert values[0] == sign * below
        assert np.array_equal(values[1:], [sign * beyond] * 3, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("BF16", ml_dtypes.bfloat16), ("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2)],
)
def test_float64_is_rounded_once(name, kind):
    codes = every_code(name)[: 1 << (8 * DTYPES[name].word_bytes - 1)]
    ladder = to_float64(codes.data, name)
    ladder = ladder[np.isfinite(ladder)]
    middle = (ladder[:-1] + ladder[1:]) / 2
    # A hair above a tie, too thin for float32 to see: rounding twice would make it a tie.
    hair = np.nextafter(middle, np.inf)
    assert np.array_equal(to_float64(from_float64(hair, name).data, name), ladder[1:])
    assert np.array_equal(to_float64(from_float64(np.nextafter(middle, 0), name).data, name), ladder[:-1])
    tie = to_float64(from_float64(middle, name).data, name)
    assert np.array_equal(tie, middle.astype(np.float32).astype(kind).astype(np.float64))


def test_integers_bools_scales_and_complex_have_values():
    assert to_float64(np.array([-128, 127], np.int8).data, "I8").tolist() == [-128, 127]
    assert to_float64(np.array([2**63], np.uint64).data, "U64").tolist() == [2.0**63]
    assert to_float32(b"\x00\x01", "BOOL").tolist() == [0, 1]
    assert to_float64(np.array([1 + 2j], np.complex64).tobytes(), "C64").tolist() == [1, 2]
    scales = to_float32(bytes([0, 127, 254, 255]), "F8_E8M0")
    assert scales[:3].tolist() == [2.0**-127, 1, 2.0**127]
    assert np.isnan(scales[3])


def test_every_dtype_is_read_or_refused():
    for name, kind in DTYPES.items():
        if has_float_values(name):
            assert to_float64(bytes(8), name).size == 8 // kind.word_bytes
        else:
            assert kind.bits < 8
            with pytest.raises(UsageError):
                to_float32(bytes(8), name)
    for name in ("I32", "BOOL", "F8_E8M0", "F4"):
        with pytest.raises(UsageError):
            from_float64(np.zeros(1), name)
