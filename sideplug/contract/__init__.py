"""What cloud and device must agree on, byte for byte. Imports no other room."""
