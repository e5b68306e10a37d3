"""The parts of ``experiments/eps_vs_v.py``: train an arm, measure it, sample from it, take the gap apart."""
