"""score: indices from a model and two sides of data, in one forward pass a side."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resque_ext.data.checks import check_choice, check_device, describe
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.indices.base import Facts
from resque_ext.indices.registry import check_names, find, make_indices
from resque_ext.indices.shown import results_table, with_layers
from resque_ext.model import normalization
from resque_ext.model.batch import MASK, MaskOf, rows_of
from resque_ext.model.hooks import copied, unwrap
from resque_ext.model.inputs import check_observable
from resque_ext.model.pooling import Pooling
from resque_ext.model.reads import Reads
from resque_ext.model.streams import TokenMasks
from resque_ext.ops.eager import eager
from resque_ext.plots.charts import layer_chart
from resque_ext.scoring import over_ranks
from resque_ext.scoring.failures import AsItIs, Failed, Guarded, check_classes
from resque_ext.scoring.forward_pass import Passes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from resque_ext.distributed import Ranks


class Scores(Mapping[str, Any]):
    """Several indices of one model and one pair of sides: each index's own result, by its name.

    With errors="keep" it is a :class:`Failed` for one that failed.

    Attributes:
        layer: the embedding's layer, where an index reads one.
        layers: the layers that were read, where an index reads them.
        skipped: layers that were not read, each with the reason.
        old_accuracy, new_accuracy: of the model, if it is a classifier and the side was run.
        pooling, labels: of the embedding, as in a result.
    """

    def __init__(self, results: Mapping[str, Any], facts: Facts) -> None:
        self._results = dict(results)
        self.pooling, self.labels = facts.pooling, facts.labels
        self.layer, self.layers, self.skipped = facts.layer, facts.layers, facts.skipped
        self.old_accuracy, self.new_accuracy = facts.old_accuracy, facts.new_accuracy

    def __getitem__(self, name: str) -> Any:
        return self._results[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def __float__(self) -> float:
        raise ArgumentTypeError(
            "scores",
            "one index to make a float of",
            f"{len(self)}: choose one of {', '.join(map(repr, self))}",
        )

    def __repr__(self) -> str:
        values = ", ".join(
            f"{name}={result if isinstance(result, Failed) else format(float(result), '.4g')}"
            for name, result in self.items()
        )
        return f"Scores({values})"

    def plot(self) -> Figure:
        """The values of all layers, a panel an index that reads them.

        Raises:
            ValueError: no index here reads layers, or matplotlib is not installed.
        """
        return layer_chart(with_layers(self))

    def _repr_html_(self) -> str:
        return results_table(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None, for JSON: every index's own by its name."""
        return {name: result.to_dict() for name, result in self.items()}


@eager
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
    pooling: Pooling = "auto",
    mask: str | MaskOf | None = MASK,
    channels: str | None = None,
    labels: str = "given",
    mapping: bool = False,
    errors: str = "raise",
) -> Any:
    """What reusing `model` on new data will cost, from one forward pass over each side.

    Args:
        model: a trained model; run in eval mode without gradients, and returned unchanged.
        old, new: batches ``(inputs, labels)``; labels are class indices [N], inputs what the model
            takes (a mapping as keyword arguments). A mapping that has "labels" is such a pair by
            itself. Indices that read no labels ("arm", "representation_distance") take inputs alone
            and labels of any kind, too. Without `new`, `shift` makes the new side from the old
            batches, on the device. `old` may be None for "resque_task", "linear_probe" and
            "nearest_class_mean", which read the new side alone.
        indices: names of indices: "resque_dist", "resque_task", "preindex", "arm",
            "linear_residual", "representation_distance" (p, the part of "preindex" that reads no
            labels), "accuracy_drop", "linear_probe" and "nearest_class_mean" (errors of simple
            classifiers), or one that another package adds. p and "preindex" compare every sample
            with itself and need `shift` or `paired`. "linear_residual" with `adapt_normalization`
            takes one more pass over the new side, under the model as it is.
        layer: what the embedding is: a module's output ("NAME"), a part of it ("NAME:KEY",
            "NAME:0"), what it reads ("NAME:input"), what it gives when it runs again
            ("NAME#2"), or the model's own output ("output", "output:KEY"). [N, D], tokens
            [N, T, D] and maps [N, C, H, W] or [N, H, W, C] are taken.
            By default the vector that the model itself uses. With a head, that is what the head
            reads; a head that runs on every token is read at the token whose scores the model
            returns. Without a head, it is the sentence embedding, the mean of the last hidden
            state, or the output. If neither is found, it is what the last linear layer reads.
        layers: what "preindex", "representation_distance" and "arm" read. "auto": every module with
            weights that makes features, other than the head. "published": every module with
            `out_features` or `out_channels` above the number of the classifier's outputs. Else
            names as `layer` takes them, or a function of (name, module) that says which.
        paired: the new batches are the old ones, row by row, after a shift (given by `shift`).
        shift: a function of a batch of inputs, such as :func:`resque_ext.shifts.make` gives; its
            `reset()`, where it has one, is called before each pass, so that every pass sees the
            same.
        adapt_normalization: True: first re-estimate running statistics (of batch norm, and of
            instance norm that has them) on the new side, on a copy of the model. This takes one
            more forward pass over the new side. "match": also match what other normalization layers
            read to the old side, channel by channel. It suits models without running statistics,
            and takes one more pass over each side. The old side keeps the model as it is.
        batch_adapter: makes ``(inputs, labels)`` of any other batch.
        device: where to run; by default where the model is. A model elsewhere is copied.
        progress: show a progress bar on stderr.
        options: further arguments of an index, by its name: those of its accumulator or function,
            such as ``{"arm": {"per": "filter"}, "preindex": {"distance": "kl"}}``.
        ranks: the processes that each read a share of both sides, as every one of them calls this:
            :class:`resque_ext.distributed.Ranks`, entered. All get the result of all data, as if
            those of rank 0 had come first, then those of rank 1, and so on. A share may be empty.
            For indices whose states can be joined: "resque_dist", "arm", "linear_residual" (up to
            its standard error), "representation_distance" and "accuracy_drop".
        pooling: how the positions of a layer's output become one vector: "mean", "first", "last",
            or a function of x, or of (x, mask), that returns [N, D]. Positions are tokens, of which
            the mask leaves the real ones, or those of a map. "auto": of the default layer what the
            model does (see `layer`), else the mean; for p all tokens side by side, as published.
            What was done is in the result's `pooling`, with the reason in brackets where "auto"
            could not tell.
        mask: which tokens are real: the key of a mapping's mask [N, T], nonzero for real tokens; or
            a function of the inputs that returns such a mask or None; or None. It holds for every
            [N, T, D] of these N and T; one by its key not for layers that see images, nor for a
            decoder that the batch gives tokens of its own, whose mask is under "decoder_KEY".
        channels: "first" or "last": where a map has its channels, if neither the layer nor those
            within it say so.
        labels: "given", or "predicted": class-wise indices take the model's own predictions for
            the labels of the new side, and of the old side where that has none.
        mapping: True returns :class:`Scores` for one index too, so that code for any number of
            indices needs no second case.
        errors: "raise": an index that fails ends all. "keep": the others go on, and in its place is
            a :class:`Failed` with its error. What is wrong with an argument, a batch, the model or
            the data as such raises in any case. Not with `ranks`.

    Returns:
        One index: its own result, with `layer` and both sides' accuracy where the model is a
        classifier: its output (or the `logits` in it) is [N, K] with K >= 2 and comes from its last
        layer; every label then has to be below K. Several: :class:`Scores`, a mapping of such
        results by name. Classes that neither side has are listed in `missing`.

    Raises:
        TypeError: a batch that is not ``(inputs, labels)``; a one-shot iterator where two passes
            are needed; an option that an index does not have.
        KeyError: no such layer, or a layer that does not run.
        ValueError: an empty side, a model without running statistics (or, for "match", without
            normalization), or data that an index refuses.
        RankError: of `ranks`, another one failed or was lost.
    """
    names = check_names(indices)
    _check_arguments(model, old, new, names, shift)
    reads = Reads(layer, layers, pooling, mask, channels, labels, batch_adapter)
    if isinstance(adapt_normalization, str) and adapt_normalization != "match":
        raise ArgumentError(
            "adapt_normalization", "True, False or 'match'", f"{adapt_normalization!r}"
        )
    check_choice(errors, ("raise", "keep"), "errors")
    if errors == "keep" and ranks is not None:
        raise ArgumentError("errors", "'raise' with ranks, which go on together", "'keep'")
    paired = bool(paired) or shift is not None
    made: dict[str, Any] = dict(make_indices(names, options, paired, bool(adapt_normalization)))
    if errors == "keep":
        made = {name: Guarded(index) for name, index in made.items()}
    if ranks is not None:
        over_ranks.check(ranks, made, adapt_normalization, paired, reads)
    inner = unwrap(model)
    check_observable(inner)
    device = _device(inner, device)
    passes = Passes(
        list(made.values()),
        reads,
        device,
        progress,
        classifier=old is not None,
        watch=None if ranks is None else ranks.watch,
    )
    inner = _on_device(inner, device)
    if passes.reads_layers:
        reads.chosen(inner)  # what is wrong with the argument shows before any pass
    elif not isinstance(layers, str) or layers not in ("auto", "published"):
        raise ArgumentError(
            "layers", f"'auto', because {names} read one layer (see layer=)", f"{layers!r}"
        )
    if shift is None and labels == "given" and batch_adapter is None and ranks is None:
        check_classes(list(made.values()), inner, old, new)
    adapted = None
    if adapt_normalization:
        source = old if shift is not None else new
        match = adapt_normalization == "match"
        adapted = _adapted(inner, old, source, passes, shift, match, ranks)
        plain = [AsItIs(index) for index in made.values() if index.reads.as_is]
    if shift is not None:
        _restart(shift)
        passes.shifted(inner, adapted or inner, old, shift)
    elif passes.reads_pairs:
        passes.paired(inner, adapted or inner, old, new)
    else:
        if any("old" in index.reads.sides for index in made.values()):
            passes.side(inner, old, "old")
        passes.side(adapted or inner, new, "new")
    if adapted is not None and plain:
        _restart(shift)
        also = passes.fork(plain)  # type: ignore[arg-type]
        also.side(inner, source, "new", shift)
    if ranks is not None:
        over_ranks.join(ranks, passes, made)
    facts = passes.known()
    results = {name: index.compute(facts) for name, index in made.items()}
    return results[names[0]] if len(names) == 1 and not mapping else Scores(results, facts)


def _check_arguments(model: Any, old: Any, new: Any, names: tuple[str, ...], shift: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError("model", "a torch.nn.Module", describe(model))
    if (new is None) == (shift is None):
        found = "both" if shift is not None else "neither"
        raise ArgumentError("new, shift", "one of the two", found)
    readers = [name for name in names if "old" in find(name).reads.sides]
    if old is None and (readers or shift is not None):
        reader = f"{readers[0]!r} reads it" if readers else "shift makes the new side of it"
        raise ArgumentTypeError("old", f"batches, because {reader}", "None")
    if shift is not None and not callable(shift):
        raise ArgumentTypeError("shift", "a function of a batch", describe(shift))
    if old is new and isinstance(old, Iterator):
        raise ArgumentError(
            "new",
            "batches of its own",
            "the iterator that old is, which can be read once",
            fix="pass a list or a DataLoader",
        )


def _device(model: nn.Module, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return check_device(device)
    first = next(model.parameters(), next(model.buffers(), None))
    return first.device if first is not None else torch.device("cpu")


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
        raise ArgumentError(
            "adapt_normalization",
            "a model with running statistics (batch-norm, instance norm)",
            f"none in {type(model).__name__}; there is nothing to re-estimate",
        )
    matchable = match and bool(normalization.matchable(model))
    if match and not matchable and not normalization.reestimable(model):
        raise ArgumentError(
            "adapt_normalization",
            "a model with normalization layers",
            f"none in {type(model).__name__}; there is nothing to match",
        )
    for side, data in (("new", new), ("old", old)):
        if isinstance(data, Iterator) and (side == "new" or matchable):
            raise ArgumentTypeError(
                "adapt_normalization",
                f"{side} data that can be read twice (a list, a DataLoader)",
                f"the one-shot iterator {type(data).__name__}",
            )

    def news() -> Iterator[Any]:
        _restart(shift)
        for inputs, labels in run.batches(new, "new", "normalization"):
            if _rows(inputs, labels):  # none would count as a batch with zero statistics
                yield inputs if shift is None else shift(copied(inputs))

    def olds() -> Iterator[Any]:
        for inputs, labels in run.batches(old, "old", "normalization"):
            if _rows(inputs, labels):
                yield inputs

    join = None if ranks is None else functools.partial(over_ranks.join_statistics, ranks)

    def real(inputs: Any) -> TokenMasks:
        return run.reads.token_masks(inputs, "new")

    return normalization.adapted(model, news, olds if matchable else None, join, real)


def _rows(inputs: Any, labels: Tensor | None) -> int:
    return rows_of(inputs) or 0 if labels is None else len(labels)


def _restart(shift: Callable[[Any], Any] | None) -> None:
    """A seeded shift back at its beginning, so that every pass sees the same shifted data."""
    reset = getattr(shift, "reset", None)
    if callable(reset):
        reset()
