"""Fuzzing with coverage: bytes that anyone could send or store, against everything that reads them."""
