"""Training pictures: found, read, captioned, ordered, and encoded once as latent moments."""
