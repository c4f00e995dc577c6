"""Reward and cost models, trained on preference pairs and kept beside the base model."""
