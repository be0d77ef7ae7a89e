"""The floor plan: every system as a composition of rooms, read from YAML."""
