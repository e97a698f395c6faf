"""The ways in which embeddings are laid out in a container; one module for each group of related layouts."""
