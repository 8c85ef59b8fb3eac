"""What stands behind `opt`: clipping that travels, several optimisers as one, parameter groups by rule."""
