"""Reports: what a run left in its directory, as curves for people."""

from lightjax.report.record import Record, read_record

__all__ = ["Record", "read_record"]
