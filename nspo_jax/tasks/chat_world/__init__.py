"""The chat world: a toy with the structure on which safety training fails in large models."""
