"""What a network does, measured and drawn; nothing here changes it."""
