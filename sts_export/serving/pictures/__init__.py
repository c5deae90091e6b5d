"""From the URL of a picture in a request to the bytes of its file, within what the server's operator allows."""
