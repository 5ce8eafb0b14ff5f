"""study: what indices say of many shifts, and what retraining for each of them really costs."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import nn
from tqdm.auto import tqdm

from resque_ext.data.checks import describe
from resque_ext.energy.meter import EnergyMeter
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.indices.registry import check_names
from resque_ext.model.batch import MASK, MaskOf
from resque_ext.model.pooling import Pooling
from resque_ext.model.reads import Reads
from resque_ext.plots.canvas import words
from resque_ext.plots.charts import cost_chart
from resque_ext.plots.html import number, table
from resque_ext.retraining import setup
from resque_ext.retraining.batches import Batches
from resque_ext.retraining.random_state import Randomness
from resque_ext.retraining.retrain import make_settings, retrain
from resque_ext.retraining.run import RetrainingError, check_optimizer
from resque_ext.retraining.settings import Settings, function_name
from resque_ext.studies.correlations import Correlations, correlate
from resque_ext.studies.grid import COVERAGE, Case, Levels, groups_needed, make_grid
from resque_ext.studies.predictors import Predictors, prepared
from resque_ext.studies.study_file import StudyFile, check_path
from resque_ext.studies.study_run import StudyRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What a file of the default grid has in every line.
INDICES = ("resque_dist", "resque_task", "preindex", "arm", "linear_residual")
SIDES = ("old", "train", "test")
SAMPLE = "new"  # the side that may be left out
# What the study decides itself, or has an argument of its own for.
OWN = {"target_accuracy", "transform", "device", "seed", "progress"}
OPTIONS = tuple(f.name for f in dataclasses.fields(Settings) if f.name not in OWN)


class Study(Sequence[StudyRun]):
    """The runs of a study, in the order of its shifts."""

    def __init__(self, runs: Iterable[StudyRun]) -> None:
        self.runs = tuple(runs)

    @overload
    def __getitem__(self, index: int) -> StudyRun: ...
    @overload
    def __getitem__(self, index: slice) -> Study: ...
    def __getitem__(self, index: Any) -> Any:
        found = self.runs[index]
        return Study(found) if isinstance(index, slice) else found

    def __len__(self) -> int:
        return len(self.runs)

    def __repr__(self) -> str:
        censored = sum(run.censored for run in self.runs)
        kinds = len({run.kind for run in self.runs})
        return f"Study({len(self)} runs of {kinds} kinds of shift, {censored} censored)"

    def plot(
        self, predictors: str | Iterable[str] | None = None, measure: str = "epochs"
    ) -> Figure:
        """Predictors against a measured cost, a panel each, a colour a kind of shift.

        Args:
            predictors: names; by default all that some run has.
            measure: one of `resque_ext.retraining.MEASURES`. Runs that did not reach their
                target point upwards.

        Raises:
            ValueError: no run has a predictor and the measure, or matplotlib is not installed.
        """
        wanted = (predictors,) if isinstance(predictors, str) else predictors
        if wanted is None:
            wanted = dict.fromkeys(name for run in self.runs for name in run.predictors)
        panels = {name: _with_both(self.runs, name, measure) for name in wanted}
        panels = {name: found for name, found in panels.items() if found}
        if not panels:
            raise ArgumentError(
                "study",
                f"runs with one of {list(wanted)} and {measure!r}",
                f"none of {len(self)}; choose another predictor or measure",
            )
        return cost_chart(panels, words(measure))

    def _repr_html_(self) -> str:
        names = list(dict.fromkeys(name for run in self.runs for name in run.predictors))
        return table(
            repr(self),
            ("kind", "level", *map(words, names), "epochs", "reached"),
            (
                (
                    run.kind,
                    f"{run.level:g}",
                    *(number(run.predictors.get(name)) for name in names),
                    number(run.measures["epochs"]),
                    "no" if run.censored else "yes",
                )
                for run in self.runs
            ),
        )

    def correlations(self, **options: Any) -> Correlations:
        """How well every predictor orders every measure: see :func:`correlate` for the options."""
        return correlate(self.runs, **options)


def _with_both(
    runs: Iterable[StudyRun], predictor: str, measure: str
) -> list[tuple[str, float, float, bool]]:
    """(kind, value, cost, censored) of the runs that have the predictor and the measure."""
    every = ((r, r.predictors.get(predictor), r.measures.get(measure)) for r in runs)
    return [(r.kind, x, y, r.censored) for r, x, y in every if x is not None and y is not None]


def study(
    model: nn.Module,
    base_data: Mapping[str, Iterable[Any]],
    shifts: Mapping[str, Levels],
    indices: Iterable[str] = INDICES,
    *,
    target_accuracy: float,
    path: str | os.PathLike[str] | None = None,
    units: Mapping[str, str] | None = None,
    seed: int = 0,
    model_name: str | None = None,
    layer: str | None = None,
    layers: str | Iterable[str] | Callable[[str, nn.Module], Any] = "auto",
    index_options: Mapping[str, Mapping[str, Any]] | None = None,
    adapt_normalization: bool | str = True,
    pooling: Pooling = "auto",
    mask: str | MaskOf | None = MASK,
    channels: str | None = None,
    labels: str = "given",
    batch_adapter: Callable[[Any], tuple[Any, Any]] | None = None,
    device: torch.device | str | None = None,
    meter: EnergyMeter | str | None = "auto",
    on_run: Callable[[StudyRun], Any] | None = None,
    progress: bool = True,
    **retraining: Any,
) -> Study:
    """Every predictor of every shift, and what retraining for it really cost.

    For each shift at each level: the indices, the accuracy drop and the errors of simple
    classifiers, all of them as they are and after re-estimating normalization, from forward passes
    alone; then a copy of the model is retrained on the shifted data until the target is reached.

    Args:
        model: a trained classifier; it stays as it is.
        base_data: batches ``(inputs, labels)`` that can be read again and again: "old", what the
            model was trained on; "train", the new side, which is shifted and retrained on; "test",
            shifted likewise, on which the target has to be reached; and "new", if predictors should
            read something else than "train", such as a part of it. None of them shifted yet.
        shifts: levels by the name of a shift of :mod:`resque_ext.shifts`; under any other name a
            mapping of levels to functions of a batch of inputs (one with `reset()` is restarted
            with every pass).
        indices: names of indices, as in :func:`resque_ext.score`.
        target_accuracy: of the test data, above 0 and at most 1.
        path: a file of one JSON line a run (:class:`StudyRun`) after a header, or, for a new file
            that ends in ".sqlite", ".sqlite3" or ".db", of a SQLite row a run. A study that was
            killed goes on from there: finished runs are not done again, an unfinished retraining
            goes on from a checkpoint beside the file. The grid may grow from one call to the next;
            everything else has to be the same. Data are distinguished only by their numbers of
            batches and samples.
        units: what the levels of a kind of your own count, by its name.
        seed: of the study; every case's own seed (shift and retraining) is made of it, the kind and
            the level.
        model_name: for the records; by default the class's name.
        layer, layers: what the indices read, as in :func:`resque_ext.score`.
        index_options: further arguments of an index, by its name, as `options` there.
        adapt_normalization: for the predictors after re-estimating, as in :func:`resque_ext.score`:
            True, or "match" for models without running statistics, which have none with True.
        pooling, mask, channels, labels: how batches and layers are read, as in
            :func:`resque_ext.score`. With labels="predicted" no index and no simple classifier
            sees a label of the new side; the accuracy drop and the retraining do.
        batch_adapter: makes ``(inputs, labels)`` of any other batch.
        device: by default where the model is.
        meter: as in :func:`retrain`; "auto" makes one for the whole study.
        on_run: called with every run that was done, after it was kept.
        progress: show progress bars on stderr.
        retraining: further arguments of :func:`retrain`: max_epochs, optimizer, scheduler, loss,
            augment, checks_per_epoch, autocast, channels_last, deterministic, max_seconds,
            max_joules, patience, min_improvement, scheduler_interval, checkpoint_seconds. Forward
            passes for the indices use its `autocast` and `channels_last`.

    Returns:
        One run a case, as the file has it: without the gradient norms of single steps. A run that
        did not reach the target is `censored`; one whose loss was no longer finite too, with the
        message in `reasons["cost"]`. A predictor that does not exist for a shift is None, with the
        reason in `reasons`.

    Raises:
        TypeError, ValueError: an argument is wrong, or an index fails on the data as they are,
            without a shift.
        StudyError: `path` is another study's file, or in use; the message says what differs.
        RecordError: a line of it, other than a last one without its end, is no run.
        Any exception of the model, the data or the shift passes unchanged, as does
        KeyboardInterrupt, with the runs so far as their attribute `study`.
    """
    inner, place = setup.check_model(model), setup.choose_device(model, device)
    names = check_names(indices)
    settings = _settings(target_accuracy, place, seed, retraining)
    grid = make_grid(shifts, units, int(seed))
    _say_what_intervals_need(grid)
    sides = _check_sides(base_data)
    name = type(inner).__name__ if model_name is None else model_name
    if not isinstance(name, str):
        raise ArgumentTypeError("model_name", "a text", describe(name))
    if on_run is not None and not callable(on_run):
        raise ArgumentTypeError("on_run", "a function of a run", describe(on_run))
    if adapt_normalization is not True and adapt_normalization != "match":
        raise ArgumentError("adapt_normalization", "True or 'match'", f"{adapt_normalization!r}")
    if index_options is not None and not isinstance(index_options, Mapping):
        raise ArgumentTypeError(
            "index_options", "a mapping of indices to their arguments", describe(index_options)
        )
    reads = {"pooling": pooling, "mask": mask, "channels": channels, "labels": labels}
    Reads(**reads)  # what is wrong with them shows now
    usual = Reads()
    if path is not None:
        check_path(path)
    randomness = Randomness(place, tuple(sides.values()))
    with contextlib.ExitStack() as stack:
        stack.enter_context(randomness.kept(settings.seed))
        batches = {
            side: Batches(data, f"base_data[{side!r}]", place, batch_adapter, indices=True)
            for side, data in sides.items()
        }
        for side in batches.values():
            side.measure(randomness)
        settings.check_batches(batches["train"].count)
        predictors = Predictors(
            prepared(inner, settings),
            batches["old"],
            batches.get(SAMPLE, batches["train"]),
            names,
            settings,
            randomness,
            {
                "layer": layer,
                "layers": layers,
                "options": index_options,
                "adapt_normalization": adapt_normalization,
                **reads,
            },
        )
        file = None
        if path is not None:
            identity = {
                "model": name,
                "weights": _digest(inner),
                **_identity(inner, settings),
                "data": {side: [b.count, b.samples] for side, b in batches.items()},
                "indices": list(names),
                "layer": layer,
                "layers": layers if isinstance(layers, str) else _plain(layers),
                "index_options": _plain(index_options or {}),
            }
            # Files from before these could be chosen go on.
            if adapt_normalization is not True:
                identity["adapt_normalization"] = adapt_normalization
            identity |= {n: _plain(v) for n, v in reads.items() if v != getattr(usual, n)}
            file = stack.enter_context(StudyFile(path, identity, grid))
        options = {n: getattr(settings, n) for n in OPTIONS} | {
            "batch_adapter": batch_adapter,
            "device": place,
            "meter": setup.make_meter(meter, settings, stack),
            "progress": bool(progress),
        }
        runner = _Runner(inner, name, sides, predictors, settings, options, file)
        return runner.go(grid, on_run, bool(progress))


@dataclasses.dataclass(frozen=True)
class _Runner:
    """What all cases of a study have in common; see `study` and `retrain`."""

    model: nn.Module
    name: str
    sides: Mapping[str, Any]
    predictors: Predictors
    settings: Settings
    options: dict[str, Any]
    file: StudyFile | None

    def go(
        self, grid: Sequence[Case], on_run: Callable[[StudyRun], Any] | None, progress: bool
    ) -> Study:
        """All cases that are not in the file yet."""
        done = dict(self.file.runs) if self.file is not None else {}
        try:
            missing = [case for case in grid if case.key not in done]
            if missing:
                self.predictors.check(self.settings.seed)
            bar = tqdm(total=len(grid), initial=len(done), desc="study", disable=not progress)
            with bar:
                for case in missing:
                    bar.set_postfix_str(f"{case.kind} {case.level:g}")
                    run = self._run(case)
                    if self.file is not None:
                        self.file.append(run)
                    done[case.key] = run
                    bar.update()
                    if on_run is not None:
                        on_run(run)
        except BaseException as error:
            with contextlib.suppress(AttributeError):  # an exception that takes no attributes
                error.study = Study(_ordered(done, grid))  # type: ignore[attr-defined]
            raise
        return Study(_ordered(done, grid))

    def _run(self, case: Case) -> StudyRun:
        predicted = self.predictors.of(case.shift, case.seed)
        reasons = dict(predicted.reasons)
        try:
            cost = retrain(
                self.model,
                self.sides["train"],
                self.sides["test"],
                self.settings.target_accuracy,
                transform=case.shift,
                seed=case.seed,
                checkpoint=None if self.file is None else self.file.checkpoint(case.seed),
                **self.options,
            )
        except RetrainingError as error:
            # The same would happen every time, and the other cases have nothing to do with it.
            if error.record is None:
                raise
            cost, reasons["cost"] = error.record, str(error)
            warnings.warn(f"{case.kind} {case.level:g}: {error}", stacklevel=4)
        # As in the file, so that a run is the same whether it was done now or before.
        norms = dataclasses.replace(cost.gradient_norm, per_step=None)
        return StudyRun(
            kind=case.kind,
            level=case.level,
            unit=case.unit,
            seed=case.seed,
            model=self.name,
            predictors=predicted.values,
            std_errors=predicted.std_errors,
            cost=dataclasses.replace(cost, gradient_norm=norms),
            reasons=reasons,
            index_seconds=predicted.seconds,
        )


def _ordered(
    done: Mapping[tuple[str, float], StudyRun], grid: Sequence[Case]
) -> Iterator[StudyRun]:
    return (done[case.key] for case in grid if case.key in done)


def _say_what_intervals_need(grid: Sequence[Case]) -> None:
    """Before hours are spent on too few kinds."""
    kinds = len({case.kind for case in grid})
    needed = groups_needed(COVERAGE)
    if kinds < needed:
        warnings.warn(
            f"shifts: {kinds} kind{'s' if kinds > 1 else ''}: to predict the cost of another kind, "
            f"with an interval that has an upper end, CostModel needs {needed} at a coverage of "
            f"{COVERAGE:g} ({groups_needed(0.8)} at 0.8)",
            stacklevel=3,
        )


def _settings(
    target_accuracy: Any, place: torch.device, seed: Any, given: Mapping[str, Any]
) -> Settings:
    unknown = [name for name in given if name not in OPTIONS]
    if unknown:
        raise ArgumentTypeError(
            "retraining", f"options among {', '.join(OPTIONS)}", f"{unknown[0]!r}"
        )
    return make_settings(place, given, target_accuracy=target_accuracy, seed=seed)


def _check_sides(base_data: Any) -> dict[str, Any]:
    if not isinstance(base_data, Mapping):
        raise ArgumentTypeError(
            "base_data",
            f"a mapping of {', '.join(map(repr, SIDES))} to batches",
            describe(base_data),
        )
    if set(base_data) - {SAMPLE} != set(SIDES):
        raise ArgumentError(
            "base_data",
            f"batches for {', '.join(map(repr, SIDES))} ('new')",
            ", ".join(map(repr, base_data)) or "none",
        )
    return {side: base_data[side] for side in (*SIDES, SAMPLE) if side in base_data}


def _identity(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """What of the settings has to be the same for a study to go on."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = settings.optimizer(trained)
    check_optimizer(optimizer, trained)
    options = settings.describe(optimizer)
    return {
        "target_accuracy": float(settings.target_accuracy),
        "seed": int(settings.seed),
        "device": setup.describe_device(settings.device),
        "retraining": {name: value for name, value in options.items() if name != "transform"},
    }


def _digest(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers with their names, dtypes and shapes."""
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """For JSON; what has no plain form by its name, or its type and shape."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return function_name(value) if callable(value) else describe(value)
