"""The WebUIs that this package lives in, behind one port."""
