"""The comparison of wsqueue with other systems: `make bench`."""
