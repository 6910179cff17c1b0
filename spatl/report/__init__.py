"""Reports for people: figures, pages, and the report of a run."""
