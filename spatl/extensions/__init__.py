"""Extensions: code of the user's own that a config names by `package.module:name`, and ours that is found at need."""
