"""What retraining really costs: train a copy until it is good enough, and measure everything."""

from resque_ext.retraining._run import RetrainingError
from resque_ext.retraining.checkpoint import CheckpointError
from resque_ext.retraining.heads import freeze, replace_head
from resque_ext.retraining.loop import retrain
from resque_ext.retraining.record import MEASURES, RecordError, RetrainingCost

__all__ = [
    "MEASURES",
    "CheckpointError",
    "RecordError",
    "RetrainingCost",
    "RetrainingError",
    "freeze",
    "replace_head",
    "retrain",
]
