"""What travels: bodies, tensors and texts as the Open Inference Protocol and plain requests write them."""
