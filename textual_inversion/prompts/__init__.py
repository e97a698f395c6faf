"""Turns prompts into 75-token chunks, and templates and captions into prompts."""
