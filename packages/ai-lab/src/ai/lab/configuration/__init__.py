"""What a configuration is made of: plain values, fields checked against their types, a YAML file."""
