"""Small foreign checkpoints, made on the fly."""
