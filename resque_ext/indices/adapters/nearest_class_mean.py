"""The error of giving each of the new side's embeddings to the nearest class mean."""

from __future__ import annotations

from resque_ext.indices._simple_classifier import SimpleClassifier


class NearestClassMean(SimpleClassifier):
    """Error of the nearest mean of a class, by five folds, 0 to 1."""

    field = predictor = "nearest_class_mean_error"
