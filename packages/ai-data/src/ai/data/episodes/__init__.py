"""Episodes as arrays: packed, drawn by priority, and the returns learnt from them."""
