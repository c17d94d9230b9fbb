"""One script for each paper's tables."""
