"""AUTOMATIC1111's WebUI as a host. Imported inside it (and reForge) only."""
