"""fleetd turns racked GPU servers into rentable compute, and keeps proving that they are."""

__version__ = "0.1.0"
