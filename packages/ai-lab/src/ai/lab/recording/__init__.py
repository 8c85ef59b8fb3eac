"""A trial while it is written: its session, and all that goes into its folder."""
