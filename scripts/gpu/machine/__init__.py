"""What the machine is, and how fast its memory."""
