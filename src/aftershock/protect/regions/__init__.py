"""Critical regions of components (ReaLM): fitted by a study, kept in a file."""
