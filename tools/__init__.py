"""Scripts that create the tiny checkpoint and the demo's pictures. Not part of the installed package."""
