"""Tables and plots from finished results. Imports no torch."""
