"""Deployments, as all their machines see them: directories, addresses, and processes."""
