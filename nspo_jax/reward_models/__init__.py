"""Reward and cost models: trained on preference pairs, kept beside the base model."""
