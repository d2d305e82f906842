"""What one corrupted bit does to a large language model's inference."""

__version__ = "0.1.0"
