"""How the tiny checkpoint and the demo's pictures were made. Not part of the installed package."""
