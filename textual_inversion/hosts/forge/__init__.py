"""Stable Diffusion WebUI Forge as a host. Imported inside it only."""
