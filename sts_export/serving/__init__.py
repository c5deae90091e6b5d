"""A bundle as a service: OpenAI's API over HTTP, with one scheduler underneath."""
