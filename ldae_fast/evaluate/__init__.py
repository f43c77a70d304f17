"""Evaluation: what the representation is worth, beside what anyone gets without training."""
