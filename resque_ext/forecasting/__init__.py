"""What a retraining will cost, forecast from the target and its first steps."""

from resque_ext.forecasting.forecast import forecast
from resque_ext.forecasting.refit import refit
from resque_ext.forecasting.result import Forecast, ProbeCost
from resque_ext.retraining.calibration import Calibration

forecast.refit = refit  # type: ignore[attr-defined]  # where one looks for it

__all__ = ["Calibration", "Forecast", "ProbeCost", "forecast", "refit"]
