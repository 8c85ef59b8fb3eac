"""Which requests may share a call of the model, and which rows of it are whose."""
