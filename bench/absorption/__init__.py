"""The absorption suite's parts: words and their letters, probes, projections, and two engines."""
