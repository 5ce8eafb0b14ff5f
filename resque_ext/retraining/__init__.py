"""What retraining really costs: train a copy until it is good enough, and measure everything."""

from resque_ext.retraining._run import RetrainingError
from resque_ext.retraining._scaling import Prediction
from resque_ext.retraining.checkpoint import CheckpointError
from resque_ext.retraining.cost_model import CostModel
from resque_ext.retraining.heads import freeze, replace_head
from resque_ext.retraining.loop import retrain
from resque_ext.retraining.record import MEASURES, RecordError, RetrainingCost
from resque_ext.retraining.transfer import leave_one_kind_out

__all__ = [
    "MEASURES",
    "CheckpointError",
    "CostModel",
    "Prediction",
    "RecordError",
    "RetrainingCost",
    "RetrainingError",
    "freeze",
    "leave_one_kind_out",
    "replace_head",
    "retrain",
]
