"""wsqueue measured against others: `make bench`."""
