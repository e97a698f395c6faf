"""The kinds of files that hold embeddings (safetensors, PyTorch, pictures), read as plain data; nothing in them is run."""
