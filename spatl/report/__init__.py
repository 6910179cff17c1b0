"""What people look at: figures, pages, and the report of a run."""
