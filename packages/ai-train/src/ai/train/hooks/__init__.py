"""Hooks: the interface of one, a list of them, and the duties that the standard hook is made of."""
