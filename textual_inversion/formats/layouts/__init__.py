"""The layouts of embeddings in containers. Related layouts share a module."""
