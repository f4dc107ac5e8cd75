"""The composition root: configuration, wiring of all rooms, the process and its commands."""
