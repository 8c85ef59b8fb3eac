"""Convolutions beyond the square one of images: of other ranks, dilated, transposed, separable, and blocks of them."""
