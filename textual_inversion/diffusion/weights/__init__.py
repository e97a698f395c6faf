"""Reads the tensors of a checkpoint, whatever kind of file or folder it comes as, under the names of the LDM layout.

Knows containers and names, but not what a UNet or a family is.
"""
