"""How operations use weights: for each, the gradient of a weight by example from what goes in and comes out.

What is recognised is the operation (`linear`, `embedding`, `conv2d`, a product with a weight), not the class of the
layer: layers of any library, tied weights that are used outside their layer, and the projections of torch's own
attention are all covered, and a layer with an operation that is not known is simply not found.  The formulas hold for
inputs whose first axis is the example, or examples and positions flattened in that order; whether that is so is for
the caller to test.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from modelgit.fisher.squares import Contribution, Grouped, Outer, Part, Rows, Vectors

__all__ = ["Use", "View", "Weights", "attention_in_steps", "linear_inputs", "uses_of", "view_of"]

Arguments = Mapping[str, Any]
Find = Callable[[object], "View | None"]
ByExample = Callable[[torch.Tensor], torch.Tensor]
Make = Callable[[torch.Tensor, ByExample], Contribution]
"""From the gradient of the output, float32, and a function that brings a tensor into the form `[B, T, last axis]`."""


class View(NamedTuple):
    """A weight tensor as an operation sees it: whole, transposed, or the rows from `start` to `stop`."""

    tensor: str
    transposed: bool = False
    start: int = 0
    stop: int | None = None


class Weights:
    """Weight tensors by the identity of the parameter (`tensors`), and the views of them that operations gave."""

    def __init__(self, tensors: Mapping[int, str]) -> None:
        self._tensors = tensors
        # A view is held while it is known: its identity may be another object's afterwards.
        self._views: dict[int, tuple[object, View]] = {}

    def find(self, value: object) -> View | None:
        """What `value` is a view of; None for what is no weight."""
        known = self._tensors.get(id(value))
        if known is not None:
            return View(known)
        viewed = self._views.get(id(value))
        return None if viewed is None or viewed[0] is not value else viewed[1]

    def note(self, value: object, view: View) -> None:
        """Know `value` as a view from now on."""
        self._views[id(value)] = (value, view)

    def forget_views(self) -> None:
        """Know the parameters alone."""
        self._views.clear()


class Use(NamedTuple):
    """One use of the tensor of `view` by an operation."""

    view: View
    make: Make

    def contribution(self, gradient: torch.Tensor, by_example: ByExample) -> Contribution:
        """What this use adds to the tensor's gradient, for the gradient of the operation's output."""
        made = self.make(gradient, by_example)
        return made if self.view.stop is None else Part(made, self.view.start, self.view.stop)


def uses_of(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], find: Find) -> list[Use]:
    """The uses of weights by one call; none when the operation, or the way it was called, is not known.

    `find` gives the view for a tensor that is a weight.
    """
    rule = _RULES.get(function)
    if rule is None:
        return []
    names, make = rule
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    return [use for use in make(given, find) if use.view.stop is None or not use.view.transposed]


def linear_inputs(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], find: Find
) -> tuple[View, torch.Tensor, bool] | None:
    """What meets a weight in a linear map, `[..., I]`: the view of the weight, the inputs, and whether these meet the
    weight's first axis and not its last.  None when the call is no linear map with a known weight.
    """
    rule = _RULES.get(function)
    if rule is None or rule[1] not in (_linear, _product):
        return None
    given = dict(zip(rule[0], args, strict=False)) | dict(kwargs)
    linear = rule[1] is _linear
    inputs, weight = given["input"], given["weight" if linear else "other"]
    view = find(weight)
    if view is None or not isinstance(inputs, torch.Tensor) or find(inputs) is not None or weight.ndim != 2:
        return None
    if linear:
        return None if view.transposed else (view, inputs, False)
    return view, inputs, not view.transposed


def attention_in_steps(*args: Any, **kwargs: Any) -> Any:
    """`functional.multi_head_attention_forward`, whose operations a mode then sees one by one.

    The function as it stands would hand itself over to the mode again, so a copy runs that does not look for one.
    """
    function = functional.multi_head_attention_forward
    inner = types.FunctionType(
        function.__code__,
        {**function.__globals__, "has_torch_function": lambda _: False},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    inner.__kwdefaults__ = function.__kwdefaults__
    return inner(*args, **kwargs)


def view_of(function: Callable[..., Any], args: Sequence[Any], find: Find, output: object) -> list[tuple[object, View]]:
    """Views of a weight that an operation gives: tensors, and what they are of."""
    if not args or (view := find(args[0])) is None or view.transposed:
        return []
    if function in _TRANSPOSING and isinstance(output, torch.Tensor) and output.ndim == 2 and view.stop is None:
        return [(output, view._replace(transposed=True))]
    # A constant beside a weight (1 + w) leaves its gradient what it is, and so does another type.
    constant = function in _ADDING and len(args) > 1 and isinstance(args[1], int | float)
    if isinstance(output, torch.Tensor) and output is not args[0] and (constant or function in _CASTING):
        return [(output, view)]
    if function in _SPLITTING and isinstance(output, tuple) and view.stop is None:
        found, start = [], 0
        whole = args[0]
        for part in output:
            if part.shape[1:] != whole.shape[1:]:
                return []
            found.append((part, View(view.tensor, False, start, start + len(part))))
            start += len(part)
        return found if start == len(whole) else []
    return []


def _linear(given: Arguments, find: Find) -> list[Use]:
    inputs = given["input"].detach()
    uses = []
    if (view := find(given["weight"])) is not None and not view.transposed:
        uses.append(Use(view, lambda g, by: Outer(by(g), by(inputs.float()))))
    return [*uses, *_summed(given.get("bias"), find)]


def _summed(bias: object, find: Find) -> list[Use]:
    """A bias along the last axis."""
    view = find(bias)
    return [] if view is None else [Use(view, lambda g, by: Vectors(by(g).sum(1)))]


def _product(given: Arguments, find: Find) -> list[Use]:
    """`x @ w` with a matrix, or `b + x @ w`."""
    left, right = given["input"], given["other"]
    view = find(right)
    if find(left) is not None or not isinstance(right, torch.Tensor) or right.ndim != 2 or left.ndim < 2:
        return []
    if given.get("beta", 1) != 1 or given.get("alpha", 1) != 1:
        return []
    inputs, uses = left.detach(), []
    if view is not None and view.transposed:
        uses.append(Use(view._replace(transposed=False), lambda g, by: Outer(by(g), by(inputs.float()))))
    elif view is not None:
        uses.append(Use(view, lambda g, by: Outer(by(inputs.float()), by(g))))
    bias = given.get("bias")
    return [*uses, *(_summed(bias, find) if bias is not None and bias.ndim == 1 else [])]


def _embedding(given: Arguments, find: Find) -> list[Use]:
    view, ids = find(given["weight"]), given["input"].detach()
    if view is None or view.transposed or given.get("max_norm") is not None or given.get("scale_grad_by_freq"):
        return []
    padding, rows = given.get("padding_idx"), given["weight"].shape[0]
    padding = padding + rows if padding is not None and padding < 0 else padding

    def make(g: torch.Tensor, by: ByExample) -> Contribution:
        values = by(g)
        keys = by(ids.expand(g.shape[:-1])[..., None])[:, :, 0]
        if padding is not None:  # autograd gives the padding row no gradient
            values = values * (keys != padding)[:, :, None]
        return Rows(keys, values)

    return [Use(view, make)]


def _normalised(given: Arguments, find: Find) -> list[Use]:
    """Layer and root-mean-square normalisation: over the last axes, with weights of their shape."""
    inputs, shape, eps = given["input"].detach(), tuple(given["normalized_shape"]), given.get("eps")
    has_mean = "has_mean" in given

    def flat(values: torch.Tensor, by: ByExample) -> torch.Tensor:
        return by(values.flatten(-len(shape))).sum(1).reshape(-1, *shape)

    def scaled(g: torch.Tensor, by: ByExample) -> Contribution:
        x = inputs.float()
        if has_mean:
            normed = functional.layer_norm(x, shape, None, None, 1e-5 if eps is None else eps)
        else:
            normed = functional.rms_norm(x, shape, None, eps)
        return Vectors(flat(g * normed, by))

    weight, bias = find(given.get("weight")), find(given.get("bias"))
    uses = [] if weight is None else [Use(weight, scaled)]
    return uses if bias is None else [*uses, Use(bias, lambda g, by: Vectors(flat(g, by)))]


def _layer_norm(given: Arguments, find: Find) -> list[Use]:
    return _normalised({**given, "has_mean": True}, find)


def _by_channel(again: Callable[[Arguments, torch.Tensor], torch.Tensor]) -> Callable[..., list[Use]]:
    """Normalisations with a weight and a bias for each channel, the second axis; `again` normalises without them."""

    def rule(given: Arguments, find: Find) -> list[Use]:
        inputs = given["input"].detach()
        if given.get("training") or inputs.ndim < 2:
            return []

        def flat(values: torch.Tensor, by: ByExample) -> torch.Tensor:
            return by(values.reshape(*values.shape[:2], -1).transpose(1, 2)).sum(1)

        weight, bias = find(given.get("weight")), find(given.get("bias"))
        uses = []
        if weight is not None:
            uses.append(Use(weight, lambda g, by: Vectors(flat(g * again(given, inputs.float()), by))))
        if bias is not None:
            uses.append(Use(bias, lambda g, by: Vectors(flat(g, by))))
        return uses

    return rule


def _group_again(given: Arguments, x: torch.Tensor) -> torch.Tensor:
    return functional.group_norm(x, given["num_groups"], None, None, given.get("eps", 1e-5))


def _batch_again(given: Arguments, x: torch.Tensor) -> torch.Tensor:
    mean, variance = given["running_mean"], given["running_var"]
    return functional.batch_norm(x, mean.float(), variance.float(), None, None, False, 0.1, given.get("eps", 1e-5))


def _instance_again(given: Arguments, x: torch.Tensor) -> torch.Tensor:
    return functional.instance_norm(
        x, given.get("running_mean"), given.get("running_var"), None, None, given.get("use_input_stats", True),
        0.0, given.get("eps", 1e-5),
    )  # fmt: skip


def _convolution(given: Arguments, find: Find) -> list[Use]:
    weight, inputs = given["weight"], given["input"].detach()
    dims = weight.ndim - 2
    if inputs.ndim != dims + 2:
        return []
    groups = given.get("groups", 1)
    kernel = tuple(weight.shape[2:])
    stride, dilation = (_each(given.get(name, 1), dims) for name in ("stride", "dilation"))
    padding = given.get("padding", 0)

    def make(g: torch.Tensor, by: ByExample) -> Contribution:
        x = functional.pad(inputs.float(), _around(padding, kernel, dilation))
        for axis in range(dims):
            span = (kernel[axis] - 1) * dilation[axis] + 1
            x = x.unfold(2 + axis, span, stride[axis])[..., :: dilation[axis]]
        x = x.flatten(2 + dims)  # [N, channels, positions..., kernel]
        out = weight.shape[0]
        # What is flattened with the example (the frames of a film) counts as positions.
        x = by(x.flatten(2, 1 + dims).transpose(1, 2).flatten(2))
        values = by(g.flatten(2).transpose(1, 2))
        if groups == 1:
            return Outer(values, x)
        count, positions, _ = x.shape
        values = values.reshape(count, positions, groups, out // groups).permute(0, 2, 3, 1)
        return Grouped(values, x.reshape(count, positions, groups, -1).transpose(1, 2))

    view, bias, uses = find(weight), find(given.get("bias")), []
    if view is not None and not view.transposed:
        uses.append(Use(view, make))
    if bias is not None:
        uses.append(Use(bias, lambda g, by: Vectors(by(g.flatten(2).transpose(1, 2)).sum(1))))
    return uses


def _each(value: Any, dims: int) -> tuple[int, ...]:
    return (int(value),) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)


def _around(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """What `functional.pad` needs: both sides of each axis, the last axis first."""
    sides = []
    for axis in reversed(range(len(kernel))):
        if padding == "same":
            whole = (kernel[axis] - 1) * dilation[axis]
            sides += [whole // 2, whole - whole // 2]
        else:
            side = 0 if padding == "valid" else _each(padding, len(kernel))[axis]
            sides += [side, side]
    return sides


def _elementwise(given: Arguments, find: Find, *, product: bool) -> list[Use]:
    """`x * w` and `x + w`, broadcast."""
    if given.get("alpha", 1) != 1:
        return []
    uses = []
    for mine, others in (("input", "other"), ("other", "input")):
        view, weight, other = find(given[mine]), given[mine], given[others]
        if view is None or view.transposed or (product and find(other) is not None):
            continue
        factor = (other.detach() if isinstance(other, torch.Tensor) else other) if product else 1.0

        def make(
            g: torch.Tensor, by: ByExample, factor: Any = factor, shape: torch.Size = weight.shape
        ) -> Contribution:
            return Vectors(_reduced(g * factor, shape, by))

        uses.append(Use(view, make))
    return uses


def _reduced(values: torch.Tensor, shape: torch.Size, by: ByExample) -> torch.Tensor:
    """Sum the gradient of a broadcast result to that of a weight of `shape`, by example: `[B, *shape]`."""
    if len(shape) == values.ndim:
        if shape[0] != 1:
            raise ValueError("a weight that is spread over the examples")
        rest = shape[1:]
        values = by(values.reshape(len(values), 1, -1))[:, 0].reshape(-1, *values.shape[1:])
    else:
        rest = shape
        trailing = values.shape[values.ndim - len(shape) :]
        values = by(values.reshape(*values.shape[: values.ndim - len(shape)], -1)).sum(1).reshape(-1, *trailing)
    for axis, size in enumerate(rest, start=1):
        if size == 1 and values.shape[axis] != 1:
            values = values.sum(axis, keepdim=True)
    return values.reshape(-1, *shape)


def _expanded(given: Arguments, find: Find) -> list[Use]:
    """A weight `[1, ...]` repeated for every example, such as the first token of a vision model."""
    view, weight = find(given["input"]), given["input"]
    if view is None or view.transposed:
        return []
    return [Use(view, lambda g, by: Vectors(_reduced(g, weight.shape, by)))]


def _times(given: Arguments, find: Find) -> list[Use]:
    return _elementwise(given, find, product=True)


def _plus(given: Arguments, find: Find) -> list[Use]:
    return _elementwise(given, find, product=False)


_CONVOLUTION = (("input", "weight", "bias", "stride", "padding", "dilation", "groups"), _convolution)
_PAIR = ("input", "other", "alpha")
_NORM = ("input", "normalized_shape", "weight", "bias", "eps")
Tensor = torch.Tensor

_RULES: dict[object, tuple[tuple[str, ...], Callable[..., list[Use]]]] = {
    functional.linear: (("input", "weight", "bias"), _linear),
    functional.embedding: (
        ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
        _embedding,
    ),
    functional.layer_norm: (_NORM, _layer_norm),
    functional.rms_norm: (("input", "normalized_shape", "weight", "eps"), _normalised),
    functional.group_norm: (("input", "num_groups", "weight", "bias", "eps"), _by_channel(_group_again)),
    functional.batch_norm: (
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        _by_channel(_batch_again),
    ),
    functional.instance_norm: (
        ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
        _by_channel(_instance_again),
    ),
    functional.conv1d: _CONVOLUTION,
    functional.conv2d: _CONVOLUTION,
    functional.conv3d: _CONVOLUTION,
    torch.addmm: (("bias", "input", "other"), _product),
    Tensor.addmm: (("bias", "input", "other"), _product),
    **dict.fromkeys(
        (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm), (("input", "other"), _product)
    ),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), (_PAIR, _times)),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), (_PAIR, _plus)),
    Tensor.expand: (("input",), _expanded),
}
_TRANSPOSING = {torch.t, Tensor.t, Tensor.T.__get__, Tensor.mT.__get__}  # type: ignore[attr-defined]
_ADDING = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
_CASTING = {Tensor.to, Tensor.float, Tensor.type_as, Tensor.contiguous}
_SPLITTING = {torch.split, Tensor.split, torch.chunk, Tensor.chunk}
