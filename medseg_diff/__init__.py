"""Diffusion models for brain MR: segmentation with uncertainty, anomaly maps, synthesis."""

__version__ = "0.1.0"
