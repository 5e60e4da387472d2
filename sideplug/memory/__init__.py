"""What a person told, kept on the device: entries, their index, and what decides whether one answers a question."""
