"""Exact evaluation of re-ID features: torch and numpy alone, neither torchvision nor Triton."""
