"""The error of a linear classifier of the new side's embeddings."""

from __future__ import annotations

from resque_ext.indices._simple_classifier import SimpleClassifier


class LinearProbe(SimpleClassifier):
    """Error of ridge regression to one-hot classes, by five folds, 0 to 1."""

    field = predictor = "linear_probe_error"
