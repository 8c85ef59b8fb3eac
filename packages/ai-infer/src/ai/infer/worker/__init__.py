"""The process that holds the model: it gathers requests, runs them, and answers."""
