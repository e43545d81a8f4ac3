"""The report: one versioned document that says what was measured, on what, and under which conditions."""

from dfqs.report.schema import Report

__all__ = ["Report"]
