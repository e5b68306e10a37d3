"""One figure per file, drawn from records or from the identity."""
