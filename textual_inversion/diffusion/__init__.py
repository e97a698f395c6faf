"""The frozen model: checkpoint files, UNet, VAE, text encoder, noise, samplers.

Import from its modules: a WebUI that starts reads a checkpoint's header and needs no model.
"""
