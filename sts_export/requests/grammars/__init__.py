"""What an answer has to be: JSON of some schema, or text of a regular expression."""
