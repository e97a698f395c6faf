"""Prepares a folder of pictures for training: resized, cropped, mirrored, with their captions."""
