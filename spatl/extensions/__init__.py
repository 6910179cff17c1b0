"""Extensions: code of the user's own that a config names by `package.module:name`, found and called in one way."""
