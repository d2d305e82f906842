"""Silent errors to be planted in a serving engine: small operations with parameters, which a case file names."""
