"""The parts of ``experiments/prediction_check.py``: cases, exact networks, measurements, tables."""
