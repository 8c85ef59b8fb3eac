"""What stands behind `opt`: clipping that travels, several optimisers as one, the depth of a parameter."""
