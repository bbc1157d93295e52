"""What happened to connections, told to applications."""
