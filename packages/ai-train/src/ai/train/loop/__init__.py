"""What the three trainers share: preparing a run, the loop, its signals."""
