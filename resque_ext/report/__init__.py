"""A screening as one page of HTML."""

from resque_ext.report.page import make_report, write_report

__all__ = ["make_report", "write_report"]
