"""SAE Verdict: is my new sparse-autoencoder variant really better?"""

__version__ = "0.1.0"
