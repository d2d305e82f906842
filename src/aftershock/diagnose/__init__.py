"""Why an engine answers worse than its reference: the first component that is wrong, and the reason."""
