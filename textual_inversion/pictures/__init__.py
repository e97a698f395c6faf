"""Pictures: read, turned upright, laid on a colour, masked, captioned, measured and cut, for training and preprocessing alike."""
