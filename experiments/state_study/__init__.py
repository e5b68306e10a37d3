"""Parts of ``experiments/low_precision_state.py``: predictions for a rounded state, and the summary of what was measured."""
