"""What lies behind an edge of the tree: the known rules of a game and an evaluator, or a learned model.

A search asks the same three questions of either: evaluate the roots, follow edges, keep what the new nodes hold.
"""
