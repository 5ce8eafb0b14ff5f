"""What retraining really costs: train a copy until it is good enough, and measure everything."""

from resque_ext.retraining._run import RetrainingError
from resque_ext.retraining._scaling import Prediction
from resque_ext.retraining.checkpoint import CheckpointError
from resque_ext.retraining.correlations import Correlation, Correlations, correlate
from resque_ext.retraining.cost_model import CostModel
from resque_ext.retraining.heads import freeze, replace_head
from resque_ext.retraining.loop import retrain
from resque_ext.retraining.record import MEASURES, RecordError, RetrainingCost
from resque_ext.retraining.study import Study, study
from resque_ext.retraining.study_file import StudyError
from resque_ext.retraining.study_record import StudyRun, read_runs
from resque_ext.retraining.transfer import leave_one_kind_out

__all__ = [
    "MEASURES",
    "CheckpointError",
    "Correlation",
    "Correlations",
    "CostModel",
    "Prediction",
    "RecordError",
    "RetrainingCost",
    "RetrainingError",
    "Study",
    "StudyError",
    "StudyRun",
    "correlate",
    "freeze",
    "leave_one_kind_out",
    "read_runs",
    "replace_head",
    "retrain",
    "study",
]
