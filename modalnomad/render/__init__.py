"""A revision as data an engine can start. Pure: no I/O, no clock."""
