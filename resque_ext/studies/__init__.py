"""Many measured retrainings: a grid of shifts, its file, and how predictors correlate."""

from resque_ext.studies.correlations import Correlation, Correlations, correlate
from resque_ext.studies.study import Study, study
from resque_ext.studies.study_file import StudyError
from resque_ext.studies.study_run import StudyRun, read_runs

__all__ = [
    "Correlation",
    "Correlations",
    "Study",
    "StudyError",
    "StudyRun",
    "correlate",
    "read_runs",
    "study",
]
