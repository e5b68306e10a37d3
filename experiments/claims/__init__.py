"""What the records say of each claim of the paper: a sentence with numbers, and whether they agree."""
