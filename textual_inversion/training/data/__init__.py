"""The training set: its pictures listed, captioned, sized, ordered, and encoded once as latent moments."""
