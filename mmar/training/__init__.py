"""Training: the paper's recipe, checkpoints that survive, and the loop."""
