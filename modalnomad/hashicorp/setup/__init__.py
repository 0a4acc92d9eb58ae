"""What a cluster needs before Apps can be deployed on it: as data, and made where it is missing."""
