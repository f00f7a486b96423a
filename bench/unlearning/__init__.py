"""The unlearning suite's parts: the questions, the grid of settings, and its two engines."""
