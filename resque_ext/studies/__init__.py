"""Many measured retrainings: a grid of shifts, its file, and how predictors correlate."""

from resque_ext.studies.correlations import Correlation, Correlations, correlate
from resque_ext.studies.study import Study, study
from resque_ext.studies.study_file import StudyError, export_runs, read_runs
from resque_ext.studies.study_run import StudyRun

__all__ = [
    "Correlation",
    "Correlations",
    "Study",
    "StudyError",
    "StudyRun",
    "correlate",
    "export_runs",
    "read_runs",
    "study",
]
