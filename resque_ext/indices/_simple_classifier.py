"""What the indices share that are a simple classifier's error on the new side's embeddings."""

from __future__ import annotations

from resque_ext.errors import ArgumentError
from resque_ext.indices._baselines import WIDEST
from resque_ext.indices._kept_embeddings import KeptIndex
from resque_ext.indices.base import Facts, IndexResult
from resque_ext.indices.resque_task import classifier_errors


class SimpleClassifier(KeptIndex):
    """The error of a classifier, 0 to 1, each row judged by what was made without its fold.

    Args:
        embedding: "pooled", the mean over positions or tokens, or "flattened".

    Subclasses set `field`: that of :class:`resque_ext.indices._baselines.Baselines` which they are.
    """

    is_baseline = True
    field: str

    def compute(self, facts: Facts) -> IndexResult:
        shards, labels = self._kept.shards(self._kept.width), self._kept.labels
        found = classifier_errors(shards, labels, (self.field,))
        value = getattr(found, self.field)
        if value is None:
            raise ArgumentError(
                f"{self.field}: too few samples, or an embedding too wide",
                f"at least two rows of at most {WIDEST} columns",
                f"shape ({len(labels)}, {self._kept.width})",
            )
        warnings = found.warnings
        return IndexResult(
            value, reliable=not warnings, warnings=warnings, **self._kept.facts(facts)
        )
