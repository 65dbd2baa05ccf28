"""Adaptive finetuning of vision-and-language transformers: the core that the backbones share."""

__version__ = "0.1.0"
