"""Training runs that are killed: how they are started and ended, and what must be equal afterwards."""
