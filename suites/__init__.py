"""Evaluation suites: one file, one suite."""
