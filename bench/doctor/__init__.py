"""Everything that can be known in seconds about whether a run will succeed, with the fixes."""
