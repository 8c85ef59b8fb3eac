"""The page that `ai-lab serve` shows."""
