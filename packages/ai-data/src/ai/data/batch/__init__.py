"""From samples to a batch on its device: order, collation, transforms, seeds."""
