"""The display of a run: a bar in terminals and notebooks, plain lines elsewhere, or nothing."""

from lightjax.progress.bar import RichProgress
from lightjax.progress.plain import NoProgress, PlainProgress
from lightjax.progress.progress import Progress, make_progress

__all__ = ["NoProgress", "PlainProgress", "Progress", "RichProgress", "make_progress"]
