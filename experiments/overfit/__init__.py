"""Four images by heart: data, language model and training of ``experiments/overfit_four.py``."""
