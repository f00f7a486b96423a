"""The conformance kit behind `bench.py check`: rehearses the whole life of a plugin in seconds."""
