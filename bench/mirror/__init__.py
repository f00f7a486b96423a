"""A folder that holds everything a run needs from the hub, for machines without network."""
