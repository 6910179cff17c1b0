"""Server of a deployment: its commands, its SuperLink, its certificates."""
