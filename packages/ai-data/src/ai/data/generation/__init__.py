"""Sources at work: in processes of their own, paced by what is used."""
