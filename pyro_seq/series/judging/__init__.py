"""How good a model of series is: scores of forecasts, anomalies, gaps filled, and a report."""
