"""score: indices from a model and two sides of data, in one forward pass a side."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from resque_ext import joining, normalization
from resque_ext._inputs import DEVICES, describe
from resque_ext.collectors import COLLECTORS, Facts, make_collectors
from resque_ext.layers import choose_layers
from resque_ext.observe import copied, unwrap
from resque_ext.passes import Passes

if TYPE_CHECKING:
    from resque_ext.distributed import Ranks

INDICES = tuple(COLLECTORS)


class Scores(Mapping[str, Any]):
    """Several indices of one model and one pair of sides: each index's own result, by its name.

    Attributes:
        layer: the embedding's layer, where an index reads one.
        layers: the layers that were read, where an index reads them.
        skipped: layers that were not read, each with the reason.
        old_accuracy, new_accuracy: of the model, where it is a classifier and the side was run.
    """

    def __init__(self, results: Mapping[str, Any], facts: Facts) -> None:
        self._results = dict(results)
        self.layer, self.layers, self.skipped = facts.layer, facts.layers, facts.skipped
        self.old_accuracy, self.new_accuracy = facts.old_accuracy, facts.new_accuracy

    def __getitem__(self, name: str) -> Any:
        return self._results[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def __float__(self) -> float:
        raise TypeError(
            f"scores: expected one index to make a float of, found {len(self)}: choose one of "
            f"{', '.join(map(repr, self))}"
        )

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={float(result):.4g}" for name, result in self.items())
        return f"Scores({values})"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None, for JSON: every index's own by its name."""
        return {name: result.to_dict() for name, result in self.items()}


def score(
    model: nn.Module,
    old: Iterable[Any] | None,
    new: Iterable[Any] | None = None,
    indices: Iterable[str] = ("resque_dist",),
    layer: str | None = None,
    layers: str | Iterable[str] | Callable[[str, nn.Module], Any] = "auto",
    paired: bool = False,
    shift: Callable[[Any], Any] | None = None,
    adapt_normalization: bool | str = False,
    batch_adapter: Callable[[Any], tuple[Any, Any]] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    ranks: Ranks | None = None,
    mapping: bool = False,
) -> Any:
    """What reusing `model` on new data will cost, from one forward pass over each side.

    Args:
        model: a trained model; run in eval mode without gradients, and given back as it came.
        old, new: batches ``(inputs, labels)``; labels are class indices [N], inputs what the model
            takes (a mapping as keyword arguments). Without `new`, `shift` makes the new side from
            the old batches, on the device. `old` may be None for "resque_task", which reads the new
            side alone.
        indices: names of indices: "resque_dist", "resque_task", "preindex", "arm",
            "linear_residual". "preindex" compares every sample with itself and needs `shift` or
            `paired`. "linear_residual" with `adapt_normalization` takes one pass more over the new
            side, under the model as it is.
        layer: the module whose output is the embedding, or "NAME:input" for what a module reads; by
            default the representation that the last linear layer reads. [N, D], [N, C, H, W] and
            [N, T, D] are taken; positions are averaged (see `options` for others).
        layers: what "preindex" and "arm" read. "auto": every module with `out_features` or
            `out_channels` above the number of the classifier's outputs; else names of modules, or a
            function of (name, module) that says which.
        paired: the new batches are the old ones, row by row, after a shift (given by `shift`).
        shift: a function of a batch of inputs, such as :func:`resque_ext.shifts.make` gives; its
            `reset()`, where it has one, is called before each pass, so that every pass sees the
            same.
        adapt_normalization: re-estimate the running statistics of batch-norm (and of instance norm,
            where it has any) on the new side first, on a copy of the model: one pass more over the
            new side, forward only. "match": also match what other normalization layers read to the
            old side, channel by channel, for models without running statistics; there one pass more
            over either side. The old side keeps the model as it is.
        batch_adapter: makes ``(inputs, labels)`` of any other batch.
        device: where to run; by default where the model is. A model elsewhere is copied.
        progress: show a progress bar on stderr.
        options: further arguments of an index, by its name: those of its accumulator or function,
            such as ``{"arm": {"per": "filter"}, "preindex": {"distance": "kl"}}``.
        ranks: the processes that each read a share of both sides, as every one of them calls this:
            :class:`resque_ext.distributed.Ranks`, entered. All get the result of all data, as if
            those of rank 0 had come first, then those of rank 1, and so on. A share may be empty.
            For "resque_dist" and "arm", whose states can be joined.
        mapping: True returns :class:`Scores` for one index too, so that code for any number of
            indices needs no second case.

    Returns:
        One index: its own result, with `layer` and both sides' accuracy where the model is a
        classifier: its output (or the output's `logits`) is [N, K] with K >= 2, and every label
        then has to be below K. Several: :class:`Scores`, a mapping of such results by name. Classes
        that neither side has are listed in `missing`.

    Raises:
        TypeError: a batch that is not ``(inputs, labels)``; a one-shot iterator where two passes
            are needed; an option that an index does not have.
        KeyError: no such layer, or a layer that does not run.
        ValueError: an empty side, a model without running statistics (or, for "match", without
            normalization), or data that an index refuses.
        RankError: of `ranks`, another one failed or was lost.
    """
    names = _check_names(indices)
    _check_arguments(model, old, new, names, shift, batch_adapter)
    if isinstance(adapt_normalization, str) and adapt_normalization != "match":
        raise ValueError(
            f"adapt_normalization: expected True, False or 'match', found {adapt_normalization!r}"
        )
    paired = bool(paired) or shift is not None
    collectors = make_collectors(names, options, paired)
    if ranks is not None:
        joining.check(ranks, collectors, adapt_normalization, paired)
    inner = unwrap(model)
    device = _device(inner, device)
    passes = Passes(
        list(collectors.values()),
        layer,
        lambda m: choose_layers(m, layers),
        batch_adapter,
        device,
        progress,
        classifier=old is not None,
        watch=None if ranks is None else ranks.watch,
    )
    inner = _on_device(inner, device)
    if passes.reads_layers:
        choose_layers(inner, layers)  # what is wrong with the argument shows before any pass
    elif not isinstance(layers, str) or layers != "auto":
        raise ValueError(
            f"layers: expected 'auto', because {names} read one layer (see layer=), "
            f"found {layers!r}"
        )
    adapted = None
    if adapt_normalization:
        source = old if shift is not None else new
        match = adapt_normalization == "match"
        adapted = _adapted(inner, old, source, passes, shift, match, ranks)
        plain = [c.unadapted() for c in collectors.values() if hasattr(c, "unadapted")]
    if shift is not None:
        _restart(shift)
        passes.shifted(inner, adapted or inner, old, shift)
    elif passes.reads_vectors:
        passes.paired(inner, adapted or inner, old, new)
    else:
        if any(c.reads_old for c in collectors.values()):
            passes.side(inner, old, "old")
        passes.side(adapted or inner, new, "new")
    if adapted is not None and plain:
        _restart(shift)
        also = Passes(
            plain,
            passes.layer_name,
            passes.choose,
            batch_adapter,
            device,
            progress,
            old is not None,
        )
        also.side(inner, source, "new", shift)
    if ranks is not None:
        joining.join(ranks, passes, collectors)
    facts = Facts(
        passes.layer_name,
        passes.layer_names,
        passes.skipped,
        passes.accuracy("old"),
        passes.accuracy("new"),
    )
    results = {name: collector.result(facts) for name, collector in collectors.items()}
    return results[names[0]] if len(names) == 1 and not mapping else Scores(results, facts)


def _check_names(indices: Any) -> tuple[str, ...]:
    if not isinstance(indices, Iterable):
        raise TypeError(f"indices: expected names among {INDICES}, found {indices!r}")
    names = (indices,) if isinstance(indices, str) else tuple(indices)
    unknown = [name for name in names if name not in INDICES]
    if unknown or not names:
        raise ValueError(f"indices: expected names among {INDICES}, found {unknown or names}")
    if len(set(names)) < len(names):
        raise ValueError(f"indices: expected every name once, found {names}")
    return names


def _check_arguments(
    model: Any, old: Any, new: Any, names: tuple[str, ...], shift: Any, batch_adapter: Any
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, found {describe(model)}")
    if (new is None) == (shift is None):
        found = "both" if shift is not None else "neither"
        raise ValueError(f"new, shift: expected one of the two, found {found}")
    readers = [name for name in names if COLLECTORS[name].reads_old]
    if old is None and (readers or shift is not None):
        reader = f"{readers[0]!r} reads it" if readers else "shift makes the new side of it"
        raise TypeError(f"old: expected batches, because {reader}, found None")
    for name, function in (("shift", shift), ("batch_adapter", batch_adapter)):
        if function is not None and not callable(function):
            raise TypeError(f"{name}: expected a function of a batch, found {describe(function)}")


def _device(model: nn.Module, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return _checked_device(device)
    first = next(model.parameters(), next(model.buffers(), None))
    return first.device if first is not None else torch.device("cpu")


def _checked_device(device: Any) -> torch.device:
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in DEVICES:
        raise ValueError(f"device: expected a cpu or cuda device, found {device!r}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: expected one of this machine's {torch.cuda.device_count()} CUDA devices, "
            f"found {device!r}"
        )
    return found


def _on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model itself, or a copy of it where it lives elsewhere."""
    here = _device(model, None)
    same = here.type == device.type and device.index in (None, here.index)
    return model if same else copy.deepcopy(model).to(device)


def _adapted(
    model: nn.Module,
    old: Any,
    new: Any,
    run: Passes,
    shift: Callable[[Any], Any] | None,
    match: bool,
    ranks: Ranks | None = None,
) -> nn.Module:
    """A copy of the model with its normalization taken to the new side."""
    if not normalization.reestimable(model) and not match:
        raise ValueError(
            "adapt_normalization: expected a model with running statistics (batch-norm, instance "
            f"norm), found none in {type(model).__name__}; there is nothing to re-estimate"
        )
    matchable = match and bool(normalization.matchable(model))
    if match and not matchable and not normalization.reestimable(model):
        raise ValueError(
            "adapt_normalization: expected a model with normalization layers, found none in "
            f"{type(model).__name__}; there is nothing to match"
        )
    for side, data in (("new", new), ("old", old)):
        if isinstance(data, Iterator) and (side == "new" or matchable):
            raise TypeError(
                f"adapt_normalization: expected {side} data that can be read twice (a list, a "
                f"DataLoader), found the one-shot iterator {type(data).__name__}"
            )

    def news() -> Iterator[Any]:
        _restart(shift)
        for inputs, labels in run.batches(new, "new", "normalization"):
            if len(labels):  # a batch without rows would count as one with zero statistics
                yield inputs if shift is None else shift(copied(inputs))

    def olds() -> Iterator[Any]:
        for inputs, labels in run.batches(old, "old", "normalization"):
            if len(labels):
                yield inputs

    join = None if ranks is None else functools.partial(joining.join_statistics, ranks)
    return normalization.adapted(model, news, olds if matchable else None, join)


def _restart(shift: Callable[[Any], Any] | None) -> None:
    """A seeded shift back at its beginning, so that every pass sees the same shifted data."""
    reset = getattr(shift, "reset", None)
    if callable(reset):
        reset()
