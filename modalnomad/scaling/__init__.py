"""How many replicas there should be, and why. Pure numbers:  is an argument."""
