"""The benchmark: methods x seeds on identical terms, and what each costs until an accuracy."""
