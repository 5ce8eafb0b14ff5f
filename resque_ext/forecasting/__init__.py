"""What a retraining will cost, forecast from the target and its first steps."""

from resque_ext.forecasting.forecast import forecast
from resque_ext.forecasting.result import Forecast, ProbeCost

__all__ = ["Forecast", "ProbeCost", "forecast"]
