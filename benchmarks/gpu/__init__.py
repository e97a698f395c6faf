"""Checks and times everything on a CUDA device: `python -m benchmarks.gpu`. Each part is a module; most need only torch and safetensors."""
