"""Prompts and conversations: public datasets, chat formats, tokenization, iterators."""
