"""One module a noun; each lists its routes in HANDLERS."""
