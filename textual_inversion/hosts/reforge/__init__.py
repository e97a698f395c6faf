"""Stable Diffusion WebUI reForge as a host. Imported inside it only."""
