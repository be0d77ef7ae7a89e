"""Pages: one HTML file that needs nothing else, drawn from a finished folder of results."""
