"""Samplers: the step of each solver in a file of its own, and the loop that runs them."""
