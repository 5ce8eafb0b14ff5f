"""Where a screening's data come from: one class a kind, all read in the same way."""

from resque_ext.data.sources.base import Source, SourceError
from resque_ext.data.sources.items import DatasetSource, ImageFolderSource
from resque_ext.data.sources.iterables import BatchSource
from resque_ext.data.sources.npy import NpySource
from resque_ext.data.sources.order import BlockOrder
from resque_ext.data.sources.parquet import ParquetSource
from resque_ext.data.sources.rows import ArraySource
from resque_ext.data.sources.spec import as_source, open_source
from resque_ext.data.sources.tar import TarSource
from resque_ext.data.sources.tensors import SafetensorsSource, open_npz

__all__ = [
    "ArraySource",
    "BatchSource",
    "BlockOrder",
    "DatasetSource",
    "ImageFolderSource",
    "NpySource",
    "ParquetSource",
    "SafetensorsSource",
    "Source",
    "SourceError",
    "TarSource",
    "as_source",
    "open_npz",
    "open_source",
]
