"""What i3lm is compared with."""
