"""Parts of `benchmarks/model_page.py`, one for each table."""
