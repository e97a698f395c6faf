"""A drawn world in which learning can be measured, and the demonstration that does so."""
