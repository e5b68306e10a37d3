"""One question per file; each writes one record."""
