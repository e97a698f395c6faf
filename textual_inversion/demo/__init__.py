"""A synthetic world of drawn pictures, and a demonstration that measures learning in it."""
