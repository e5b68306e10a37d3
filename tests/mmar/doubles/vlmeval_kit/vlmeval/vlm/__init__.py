"""Importing the models does this to the whole process, as in the real kit."""

import torch

torch.set_grad_enabled(False)
torch.manual_seed(1234)
