"""What a config names by `package.module:name`: code of the user's own, found and called in one way."""
