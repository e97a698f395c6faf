"""The ways in which embeddings are laid out in a container; related layouts share a module."""
