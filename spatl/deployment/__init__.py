"""What a deployment's machines share: directories, addresses, and processes."""
