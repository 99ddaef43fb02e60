"""The node agent: SSH from its first byte to a shell that runs as the login user."""
