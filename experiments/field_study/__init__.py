"""The parts of ``experiments/field_reports.py`` and ``experiments/parameterization_race.py``."""
