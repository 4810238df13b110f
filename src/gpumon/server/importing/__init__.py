"""Takes daily CSV files of elsewhere, the old program's and gpumon's, into a data folder; see `takeover`.

takeover   what is to be taken and is not there yet, day by day
standing   what of it is there already
publish    a new part of a day beside a running server: whole or not at all
lines      one line of a CSV file: its day, and by what it is the same as another
report     what was done, in sentences
"""

from gpumon.server.importing.report import Report, render
from gpumon.server.importing.takeover import effort, take_over

__all__ = ["Report", "effort", "render", "take_over"]
