"""What a cost model keeps of a study's runs, how it is checked, and its file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resque_ext.cost_model.recipe import check_one, chosen
from resque_ext.cost_model.scaling import (
    EMISSIONS,
    ENERGY,
    OF_DEVICE,
    OF_SIZE,
    SUMS,
    check_number,
)
from resque_ext.cost_model.target import has_target, with_target
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.retraining.record import RecordError
from resque_ext.storage.json_text import parse_json
from resque_ext.studies.study_run import StudyRun, checked_runs

FORMAT = "resque_ext.CostModel/1"
MISSING = ("error", "skip")
FEWEST = 2  # runs that reached their target, to fit on
KEYS = (
    "predictors",
    "measures",
    "method",
    "coverage",
    "penalty",
    "samples_per_epoch",
    "device",
    "unknown",
    "runs",
)
LATER = ("falling", "target_accuracy")  # which files need not have


@dataclass(frozen=True)
class ModelRun:
    """One run.

    Attributes:
        kind, level: of the shift.
        predictors: in the model's order.
        costs: by measure; lower bounds where `censored`, None where not known.
        censored: the target was not reached.
    """

    kind: str
    level: float
    predictors: tuple[float, ...]
    costs: dict[str, float | None]
    censored: bool

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"predictors": list(self.predictors), "costs": dict(self.costs)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelRun:
        return cls(**{**values, "predictors": tuple(values["predictors"])})


def model_runs(
    runs: Iterable[StudyRun],
    predictors: Sequence[str],
    measures: Sequence[str],
    missing: str,
    only: Mapping[str, Any] | None,
    mixed: bool,
) -> tuple[list[ModelRun], dict[str, Any]]:
    """What is kept of the runs, and what they have in common, as arguments of a model.

    Raises:
        TypeError, ValueError: see `CostModel.fit`.
    """
    if missing not in MISSING:
        raise ArgumentError("missing", f"one of {list(MISSING)}", f"{missing!r}")
    if not isinstance(mixed, bool):
        raise ArgumentTypeError("mixed", "True or False", f"{mixed!r}")
    studied = checked_runs(runs)
    studied = [studied[i] for i in chosen(studied, only)]
    if not mixed:
        check_one(studied, has_target(predictors))
    kept = []
    for run in studied:
        given = with_target(run.predictors, predictors, run.cost.target_accuracy)
        values = {name: given.get(name) for name in predictors}
        absent = [name for name, value in values.items() if value is None]
        if absent and missing == "skip":
            continue
        if absent:
            why = run.reasons.get(absent[0])
            raise ArgumentError(
                "runs",
                f"{absent[0]!r} in every run",
                f"none in that of {run.kind} {run.level:g}"
                + (f" ({why})" if why else f", only {sorted(run.predictors)}"),
            )
        where = f"runs: {run.kind} {run.level:g}: "
        point = tuple(check_number(where + name, value) for name, value in values.items())
        costs = {name: cost_of(run, name) for name in measures}
        kept.append(ModelRun(run.kind, float(run.level), point, costs, run.censored))
    about: dict[str, Any] = {"unknown": _unknown(studied, kept, measures)}
    about["samples_per_epoch"] = _common(
        "samples an epoch", [run.cost.samples_per_epoch for run in studied], measures, OF_SIZE
    )
    names = [str(run.cost.device.get("name", run.cost.device.get("device"))) for run in studied]
    about["device"] = _common("device", names, measures, OF_DEVICE)
    targets = {run.cost.target_accuracy for run in studied}
    about["target_accuracy"] = targets.pop() if len(targets) == 1 else None
    return kept, about


def check_runs(
    runs: Iterable[ModelRun], predictors: Sequence[str], measures: Sequence[str]
) -> tuple[ModelRun, ...]:
    """The runs, of which every number is finite and every cost from 0.

    Raises:
        TypeError, ValueError: they are not, or too few; the message names the run.
    """
    checked = tuple(_checked(run, predictors, measures) for run in runs)
    known = sum(not run.censored for run in checked)
    if known < FEWEST:
        raise ArgumentError(
            "runs", f"at least {FEWEST} that reached their target", f"{known} of {len(checked)}"
        )
    return checked


def _checked(run: ModelRun, predictors: Sequence[str], measures: Sequence[str]) -> ModelRun:
    if not isinstance(run, ModelRun):
        raise ArgumentTypeError("runs", "ModelRun", type(run).__name__)
    if not isinstance(run.kind, str) or not isinstance(run.censored, bool):
        raise ArgumentTypeError(
            "runs", "kind as text and censored as bool", f"{run.kind!r} and {run.censored!r}"
        )
    where = f"runs: {run.kind} {run.level}: "
    if len(run.predictors) != len(predictors) or set(run.costs) != set(measures):
        raise ValueError(
            f"{where}expected {len(predictors)} predictors and the costs {list(measures)}, "
            f"found {len(run.predictors)} and {list(run.costs)}"
        )
    return ModelRun(
        run.kind,
        check_number(where + "level", run.level),
        tuple(check_number(where + "predictor", value) for value in run.predictors),
        {
            name: None if cost is None else check_number(where + name, cost, least=0.0)
            for name, cost in run.costs.items()
        },
        run.censored,
    )


def check_unknown(
    unknown: Mapping[str, str], runs: Sequence[ModelRun], measures: Sequence[str]
) -> dict[str, str]:
    """Why measures are not known; every other one is known of enough runs.

    Raises:
        TypeError, ValueError: it is not so.
    """
    if not isinstance(unknown, Mapping) or not all(
        name in measures and isinstance(reason, str) for name, reason in unknown.items()
    ):
        raise ArgumentTypeError("unknown", "reasons by measure", f"{unknown!r}")
    for name in measures:
        known = _reached(runs, name)
        if name not in unknown and known < FEWEST:
            raise ArgumentError("runs", f"{name} of at least {FEWEST}", f"it of {known}")
    return dict(unknown)


def _reached(runs: Sequence[ModelRun], measure: str) -> int:
    return sum(run.costs[measure] is not None and not run.censored for run in runs)


def cost_of(run: StudyRun, measure: str) -> float | None:
    """What a run cost by one measure; None where it is not known."""
    value = run.measures[measure]
    # Without a step there is nothing to meter; but what was not done is known to cost nothing.
    if value is None and run.cost.steps == 0 and measure in SUMS:
        return 0.0
    return value


def _unknown(
    studied: Sequence[StudyRun], kept: Sequence[ModelRun], measures: Sequence[str]
) -> dict[str, str]:
    """Why a measure cannot be fitted, by its name."""
    reasons = {}
    for name in measures:
        # Zeros of runs without a step do not show that there is a meter.
        metered = name in (*ENERGY, *EMISSIONS)
        measured = any(
            run.measures[name] is not None and (run.cost.steps or not metered) for run in studied
        )
        reached = _reached(kept, name)
        if not measured:
            reasons[name] = _why_none(studied, name)
        elif reached < FEWEST:
            reasons[name] = f"known of {reached} runs that reached their target, which is too few"
    return reasons


def _why_none(studied: Sequence[StudyRun], measure: str) -> str:
    figures = {
        "joules": "measured",
        "joules_estimated": "estimated",
        "kg_co2": "emissions",
        "kg_co2_estimated": "estimated_emissions",
    }
    if measure in figures and studied and not any(run.cost.steps for run in studied):
        return "not known of the runs: none took a step, so nothing was metered"
    for run in studied:
        if measure in figures and run.cost.steps:
            reason = getattr(run.cost.energy["training"], figures[measure]).reason
            if reason:
                return f"not known of the runs: {reason}"
    return "not known of the runs"


def _common(what: str, found: Sequence[Any], measures: Sequence[str], needing: Any) -> Any:
    """What all runs have in common; None where they differ and no measure minds."""
    values = list(dict.fromkeys(found))
    if len(values) < 2:
        return values[0] if values else None
    minding = [name for name in measures if name in needing]
    if minding:
        raise ArgumentError(
            "runs",
            f"one {what} for {', '.join(minding)}",
            f"{', '.join(map(str, values))}: fit a model of each",
        )
    return None


def parse(text: str) -> dict[str, Any]:
    """The values of a model's JSON without its format.

    Raises:
        RecordError: not JSON, another format, other keys.
    """
    try:
        values = parse_json(text)
    except ValueError as error:
        raise RecordError(f"model: expected JSON, found {error}") from None
    found = values.get("format") if isinstance(values, dict) else type(values).__name__
    if found != FORMAT:
        raise RecordError(f"model: expected format {FORMAT!r}, found {found!r}")
    wrong = (set(values) - set(LATER)) ^ {"format", *KEYS}
    if wrong:
        raise RecordError(f"model: expected the keys {list(KEYS)}, differs in {sorted(wrong)}")
    return {name: values[name] for name in (*KEYS, *LATER) if name in values}
