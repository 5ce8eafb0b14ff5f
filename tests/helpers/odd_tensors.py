"""Every op, accumulator and one-call index on unusual tensors: a process that must not die.

Run by test_odd_tensors.py. Prints one line of JSON: {kind: {call: "right" or the error}}.
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import resque_ext as R
from resque_ext import ops

N, D, C = 60, 8, 3
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, D, generator=GENERATOR)
Y = torch.arange(N) % C
NEW = X + 0.3 * torch.randn(N, D, generator=GENERATOR)


def _streamed(acc: Any, x: Tensor, y: Tensor) -> float:
    acc.update(x, y, "old")
    acc.update(NEW, Y, "new")
    return float(acc.compute())


def _arm(x: Tensor, per: str) -> float:
    acc = R.Arm(per=per)
    acc.update({"layer": x}, "old")
    acc.update({"layer": NEW}, "new")
    return float(acc.compute())


def _distance(x: Tensor) -> Any:
    acc = R.RepresentationDistance()
    acc.update({"layer": (x, NEW)})
    return acc.compute().to_dict()


CALLS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "class_moments": lambda x, y: ops.class_moments(x, y, C),
    "spatial_mean": lambda x, y: ops.spatial_mean(x[:, None]),
    "value_histogram": lambda x, y: ops.value_histogram(x, bits=12).counts,
    "value_histogram by channel": lambda x, y: ops.value_histogram(x, by_channel=True).counts,
    "row_distances": lambda x, y: ops.row_distances(x, NEW)[:2],
    "lloyd_step": lambda x, y: tuple(ops.lloyd_step(x, NEW[:C])),
    "lloyd_step centers": lambda x, y: tuple(ops.lloyd_step(NEW, x[:C])),
    "pair_counts": lambda x, y: ops.pair_counts(y, Y, C, C),
    "ResqueDist": lambda x, y: _streamed(R.ResqueDist(C), x, y),
    "LinearResidual": lambda x, y: _streamed(R.LinearResidual(C), x, y),
    "Arm": lambda x, y: _arm(x, "layer"),
    "Arm by filter": lambda x, y: _arm(x, "filter"),
    "RepresentationDistance": lambda x, y: _distance(x),
    "resque_dist": lambda x, y: float(R.resque_dist(x, NEW, y, Y)),
    "linear_residual": lambda x, y: float(R.linear_residual(x, NEW, y, Y)),
    "arm": lambda x, y: float(R.arm({"layer": x}, {"layer": NEW})),
    "resque_task": lambda x, y: float(R.resque_task(x, y)),
    "preindex": lambda x, y: float(R.preindex({"layer": x}, {"layer": NEW}, x, NEW, y)),
}


class Plain(Tensor):
    """A subclass without behaviour of its own."""


def _freed(x: Tensor) -> Tensor:
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x


def _freed_view(x: Tensor) -> Tensor:
    x = torch.cat([x, x])
    view = x[len(x) // 2 :]
    x.untyped_storage().resize_(0)
    return view


def _fake(x: Tensor) -> Tensor:
    return torch._subclasses.FakeTensorMode().from_tensor(x)


def _masked(x: Tensor) -> Tensor:
    return torch.masked.masked_tensor(x, torch.ones_like(x, dtype=torch.bool))


def _two(x: Tensor) -> Tensor:
    from torch.testing._internal.two_tensor import TwoTensor

    return TwoTensor(x.clone(), x.clone())


def _uninitialized(x: Tensor) -> Tensor:
    return torch.nn.parameter.UninitializedBuffer()


#: What makes the odd tensor of a plain one.
KINDS: dict[str, Callable[[Tensor], Any]] = {
    "plain": lambda x: x,
    "negative": lambda x: torch._neg_view(-x),
    "negative view": lambda x: torch._neg_view(torch.stack([-x, x], -1))[..., 0],
    "subclass": lambda x: x.as_subclass(Plain),
    "parameter": lambda x: torch.nn.Parameter(x, requires_grad=x.is_floating_point()),
    "lazy clone": lambda x: torch._lazy_clone(x),
    "zero": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    "meta": lambda x: x.to("meta"),
    "fake": _fake,
    "freed": _freed,
    "freed view": _freed_view,
    "masked": _masked,
    "two": _two,
    "uninitialized": _uninitialized,
    "sparse": lambda x: x.to_sparse(),
    "complex": lambda x: torch.complex(x.float(), x.float()),
    "conjugate": lambda x: torch.complex(x.float(), x.float()).conj(),
    "conjugate imaginary": lambda x: torch.complex(-x.float(), -x.float()).conj().imag,
    "quantized": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    "nested": lambda x: torch.nested.nested_tensor([x, x]),
    "mkldnn": lambda x: x.float().to_mkldnn(),
}


def _in_vmap(call: Callable[[Tensor, Tensor], Any]) -> Any:
    found = torch.vmap(lambda x: call(x, Y))(torch.stack([X, X]))
    return tuple(x[1] for x in found) if isinstance(found, tuple) else found[1]


def _in_grad(call: Callable[[Tensor, Tensor], Any]) -> Any:
    found = []

    def run(x: Tensor) -> Tensor:
        found.append(call(x, Y))
        return x.sum()

    torch.func.grad(run)(X)
    return found[0]


def _in_jvp(call: Callable[[Tensor, Tensor], Any]) -> Any:
    found = []

    def run(x: Tensor) -> Tensor:
        found.append(call(x, Y))
        return x.sum()

    torch.func.jvp(run, (X,), (X,))
    return found[0]


def _in_functionalize(call: Callable[[Tensor, Tensor], Any]) -> Any:
    found = []

    def run(x: Tensor) -> Tensor:
        found.append(call(x, Y))
        return x.sum()

    torch.func.functionalize(run)(X)
    return found[0]


def _within(context: Callable[[], Any]) -> Callable[..., Any]:
    def run(call: Callable[[Tensor, Tensor], Any]) -> Any:
        with context():
            return call(X, Y)

    return run


@contextlib.contextmanager
def _dual() -> Iterator[None]:
    with torch.autograd.forward_ad.dual_level():
        yield


#: Where a call is made on plain tensors.
PLACES: dict[str, Callable[..., Any]] = {
    "vmap": _in_vmap,
    "grad": _in_grad,
    "jvp": _in_jvp,
    "functionalize": _in_functionalize,
    "fake mode": _within(lambda: torch._subclasses.FakeTensorMode()),
    "fake mode, real inputs": _within(
        lambda: torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    ),
    "inference": _within(torch.inference_mode),
    "autocast": _within(lambda: torch.autocast("cpu", torch.bfloat16)),
    "dual level": _within(_dual),
}


def _result(call: Callable[[Tensor, Tensor], Any], x: Tensor, y: Tensor) -> Any:
    """What a call gives, or None where that is an error."""
    try:
        return call(x, y)
    except (TypeError, ValueError):
        return None


def _outcome(make: Callable[[], Any], expected: Any) -> str:
    try:
        found = make()
        return "right" if _same(found, expected) else "wrong"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _same(found: Any, expected: Any) -> bool:
    if isinstance(expected, tuple):
        return all(_same(a, b) for a, b in zip(found, expected, strict=True))
    if isinstance(expected, Tensor):
        return torch.equal(torch.as_tensor(found).as_subclass(Tensor), expected)
    return bool(found == expected)


def main(backend: str) -> None:
    warnings.simplefilter("ignore")
    found: dict[str, dict[str, str]] = {}
    with R.backend(backend):
        expected = {name: call(X, Y) for name, call in CALLS.items()}
        for kind, make in KINDS.items():
            for side in ("features", "labels"):
                outcomes = found[f"{kind} {side}"] = {}
                for name, call in CALLS.items():

                    def run(call: Any = call, make: Any = make, side: str = side) -> Any:
                        return call(make(X), Y) if side == "features" else call(X, make(Y))

                    right = expected[name]
                    if kind == "zero":
                        x, y = (
                            (torch.zeros_like(X), Y)
                            if side == "features"
                            else (X, torch.zeros_like(Y))
                        )
                        right = _result(call, x, y)
                    outcomes[name] = _outcome(run, right)
        for place, run_in in PLACES.items():
            found[f"in {place}"] = {
                name: _outcome(lambda call=call, run_in=run_in: run_in(call), expected[name])
                for name, call in CALLS.items()
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
