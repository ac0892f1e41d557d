"""The lessons of the bundled model: each module draws questions with their right answers from a seeded generator."""
