"""Forecasts inside other people's training loops: Hugging Face's Trainer, and Lightning.

`resque_ext.callbacks.huggingface.ForecastCallback` and
`resque_ext.callbacks.lightning.ForecastCallback` need their library; nothing else here does.
"""

from resque_ext.callbacks.tracker import ForecastTracker

__all__ = ["ForecastTracker"]
