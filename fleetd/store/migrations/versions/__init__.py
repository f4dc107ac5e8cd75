"""One module a schema change, in the order of their down_revision; an applied one is never edited."""
