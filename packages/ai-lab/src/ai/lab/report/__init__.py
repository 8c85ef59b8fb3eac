"""Tables and pictures of what was recorded."""
