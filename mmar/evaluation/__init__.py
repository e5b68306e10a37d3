"""How well a model reads and draws."""
