"""The server of a deployment: its command, its SuperLink, its certificates."""
