"""Sparse-autoencoder variants: one file, one variant, its whole objective."""
