"""What can be known of a screen before anything is trained on it."""
