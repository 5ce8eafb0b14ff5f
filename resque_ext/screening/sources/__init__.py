"""Where a screening's data come from: one class a kind, all read in the same way."""

from resque_ext.screening.sources.base import Source, SourceError
from resque_ext.screening.sources.iterables import BatchSource
from resque_ext.screening.sources.npy import NpySource
from resque_ext.screening.sources.order import BlockOrder
from resque_ext.screening.sources.rows import ArraySource

__all__ = ["ArraySource", "BatchSource", "BlockOrder", "NpySource", "Source", "SourceError"]
