"""A double of lmms-eval 0.7.3."""
