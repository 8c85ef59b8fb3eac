"""The models that are served: where they come from, which are loaded, what is done before and after them."""
