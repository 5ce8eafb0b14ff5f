"""One model, old and new data, every index: `score`."""

from resque_ext.scoring.score import score

__all__ = ["score"]
