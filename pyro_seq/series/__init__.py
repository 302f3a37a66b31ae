"""Series: numbers, counts, categories and yes-or-no values over time, from anyone's files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_seq import lazy_exports

if TYPE_CHECKING:
    from pyro_seq.series.data.frames import from_frame as from_frame
    from pyro_seq.series.data.reading import read_series as read_series
    from pyro_seq.series.forecasting import Forecast as Forecast
    from pyro_seq.series.forecasting import forecast as forecast
    from pyro_seq.series.judging.anomalies import anomalies as anomalies
    from pyro_seq.series.judging.evaluation import evaluate as evaluate
    from pyro_seq.series.judging.filling import fill as fill
    from pyro_seq.series.program import series_program as series_program
else:
    __all__, __getattr__, __dir__ = lazy_exports(__name__)
