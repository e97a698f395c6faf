"""The frozen model: checkpoint files, UNet, VAE, text encoder, noise, samplers.

Import from its modules: a starting WebUI needs only a checkpoint's header, not the model code.
"""
