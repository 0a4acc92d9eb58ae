"""The composition root: settings in, parts that work together out. Nothing else knows which back end there is."""
