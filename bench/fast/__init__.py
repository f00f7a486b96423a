"""The `fast` engine: sae_bench's numbers, with what all SAEs have in common computed once."""
