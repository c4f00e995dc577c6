"""Prompts and conversations: the chat world, its TFDS builder, tokenization, iterators."""
