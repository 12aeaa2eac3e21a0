"""Small foreign checkpoints and models of every architecture, made on the fly; on one thread."""

import torch

torch.set_num_threads(1)
