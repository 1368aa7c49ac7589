"""What is known of tokens before a network sees them: counts, vectors, tables."""
